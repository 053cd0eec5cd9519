"""What a person has: a database of orchards, and notes for a knowledge base."""

import contextlib
import sqlite3
from pathlib import Path

COLUMN = "harvest_tonnes"
SPACE = "lighthouses"
PASSAGES = (
    "The lighthouse of Gull Point was built in 1873 from red granite and stands forty metres tall.",
    "Sourdough bread needs a starter that has been fed with flour and water for at least a week.",
    "The keeper's cottage serves tea and scones to visitors on Sunday afternoons in the summer.",
)


def write_database(folder: Path) -> Path:
    """Write a SQLite file with one table."""
    file = folder / "fruit.db"
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(f"CREATE TABLE orchards (name TEXT PRIMARY KEY, {COLUMN} REAL)")
        connection.execute("INSERT INTO orchards VALUES ('Hillside', 12.5), ('Riverbank', 7.25)")
    return file
