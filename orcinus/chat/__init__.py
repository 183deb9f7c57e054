"""A conversation in the terminal, over HTTP with any OpenAI endpoint; imports neither torch nor an HTTP library."""
