"""`0.5 happy` <-> terms -> what is added to the residual stream, and what to know of it."""
