"""Steering for other programs: a control vector for llama.cpp's own, or baked into a model file for all that read one."""
