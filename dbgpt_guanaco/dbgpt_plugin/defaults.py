"""What DB-GPT's TOML need not say. DB-GPT fills in the environment's values."""

PROVIDER = "guanaco"
API_BASE = "${env:GUANACO_API_BASE:-http://127.0.0.1:8000/v1}"
API_KEY = "${env:GUANACO_API_KEY:-EMPTY}"
