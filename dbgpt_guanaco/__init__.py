"""Private, 4-bit language models, served to DB-GPT and to any OpenAI client."""

__version__ = "0.1.0"
