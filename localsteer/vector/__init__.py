"""The control vector: the value, the records that it carries, its file."""
