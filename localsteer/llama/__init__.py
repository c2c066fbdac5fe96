"""The only room that talks to llama.cpp, through the low-level C API of llama-cpp-python."""
