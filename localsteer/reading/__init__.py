"""Texts in, rows of the residual stream and likelihoods out."""
