"""A structure → a grammar for llguidance, and what bounds the work that it can cause.

llguidance refuses what it does not understand of a JSON schema. That is why it is used: an
answer that breaks a rule which was silently left out would be taken for a right one.
"""

import json
from typing import TYPE_CHECKING, Any

from dbgpt_guanaco.errors import InvalidRequestError
from dbgpt_guanaco.types import Structure

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_CHARACTERS = 65_536
MAX_CHOICES = 1000
MAX_PROBLEM_CHARACTERS = 400

# Between two parts of JSON: a blank, or a new line with its indentation. JSON itself sets no
# bound, and a weak model writes blanks and tabs until its tokens are used up.
WHITESPACE = r" |\n {0,16}"
# The library would else allow only its own way to split text that is certain. Left alone, a
# model splits it as it has learnt to, and every token that fits the form is allowed.
DRIVER = '%llguidance {"no_forcing": true}\nstart: @answer'

# What one step of an answer may cost; a step past it ends the answer with an error. The
# library's own bounds for items and states let a hostile grammar take five times as much.
MAX_STEP_ITEMS = 10_000
MAX_LEXER_STATES = 50_000


def refusal(structure: Structure, problem: str) -> InvalidRequestError:
    """Return the error that names the field a structure came in."""
    return InvalidRequestError(structure.parameter, problem)


def grammar_of(structure: Structure) -> str:
    """Write a structure as llguidance reads it. Whether it is sound is seen when it is parsed.

    Raises:
        InvalidRequestError: It is too large, or not what its kind says.
    """
    text = structure.text
    if len(text) > MAX_CHARACTERS:
        raise refusal(
            structure, f"{len(text)} characters are more than the {MAX_CHARACTERS} allowed"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise refusal(structure, "holds half a surrogate pair") from None
    part = _part(structure) | {"name": "answer"}
    return json.dumps({"grammars": [{"lark_grammar": DRIVER}, part]})


def parse(tokenizer: "LLTokenizer", grammar: str) -> "LLMatcher":
    """Return a matcher at the start of a grammar.

    Raises:
        ValueError: The grammar is wrong, too large, or no answer can have its form.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        step_max_items=MAX_STEP_ITEMS,
        max_lexer_states=MAX_LEXER_STATES,
        precompute_large_lexemes=False,  # it would cost more than most answers ever need
        verbose_errors=False,
    )
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    # What is only warned of has been left out.
    problem = matcher.get_error() or "; ".join(matcher.get_grammar_warnings())
    if not problem:
        first = matcher.deep_copy()
        first.compute_bitmask()
        problem = "no answer can have this form" if _is_stuck(first) else first.get_error()
    if problem:
        raise ValueError(shortened(problem))
    return matcher


def shortened(problem: str) -> str:
    """Return a message of the library on one line; in a long one the middle is left out."""
    line = " ".join(problem.replace("<non-verbose/>", "").split())
    half = MAX_PROBLEM_CHARACTERS // 2
    return line if len(line) <= 2 * half else f"{line[:half]} … {line[-half:]}"


def _is_stuck(matcher: "LLMatcher") -> bool:
    return matcher.is_error() and matcher.stop_reason() == "NoExtensionBias"


def _part(structure: Structure) -> dict[str, Any]:
    """Return the answer's own grammar."""
    match structure.kind:
        case "json_object":
            return _json({"type": "object"})
        case "json_schema":
            return _json(_schema(structure))
        case "regex":
            return _regex(structure.text)
        case "choice":
            return {"lark_grammar": _choice(structure)}
        case "grammar":
            return {"lark_grammar": structure.text}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"json_schema": schema | {"x-guidance": {"whitespace_pattern": WHITESPACE}}}


def _schema(structure: Structure) -> dict[str, Any]:
    schema = _read_json(structure)
    if not isinstance(schema, dict):
        raise refusal(structure, "a JSON schema must be an object")
    if "x-guidance" in schema:  # it could tell the library to leave rules out
        raise refusal(structure, "x-guidance is not read")
    return schema


def _regex(pattern: str) -> dict[str, Any]:
    from llguidance import LLMatcher

    part: dict[str, Any] = json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"][0]
    return part


def _choice(structure: Structure) -> str:
    choices = _read_json(structure)
    if not isinstance(choices, list) or not all(c and isinstance(c, str) for c in choices):
        raise refusal(structure, "must be a list of strings, none of them empty")
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise refusal(structure, f"{len(choices)} choices, but 1 to {MAX_CHOICES} are allowed")
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(choice) for choice in choices)


def _read_json(structure: Structure) -> Any:  # noqa: ANN401 - it may be any JSON
    try:
        return json.loads(structure.text)
    except RecursionError:
        raise refusal(structure, "is nested too deeply") from None
    except ValueError as error:
        raise refusal(structure, f"is not JSON: {error}") from None
