"""Volume knobs for the behaviour of a local language model."""
