"""What every concept of the library does on each model, beside prompting, the peers and chance (`make quality`)."""
