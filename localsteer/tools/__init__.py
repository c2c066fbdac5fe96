"""Tools that a model may call: what they are, how models write a call, what reads it, the grammar that holds it to its schema."""
