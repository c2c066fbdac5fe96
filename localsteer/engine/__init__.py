"""The one engine that writes answers, whoever asks."""
