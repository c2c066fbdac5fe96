"""What is read and written without trust: text, YAML, arrays, GGUF headers; files that are whole or not there."""
