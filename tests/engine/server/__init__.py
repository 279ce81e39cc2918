"""The server on the worker engine: crashes, leaving clients, signals."""
