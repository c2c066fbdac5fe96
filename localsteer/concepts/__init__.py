"""What a vector is about: contrastive pairs, concept files, descriptions; concepts by name."""
