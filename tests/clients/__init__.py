"""Other people's programs against the server, each in an environment of its own."""
