"""The HTTP server: OpenAI's API and Ollama's, a different steering for every request, in one batch."""
