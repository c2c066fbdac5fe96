"""Side-by-side measurements against llama.cpp's own programs: `python -m bench.run` writes `bench/RESULTS.md`."""
