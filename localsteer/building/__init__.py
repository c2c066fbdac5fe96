"""From a concept to its vector for a model: built, kept, found again."""
