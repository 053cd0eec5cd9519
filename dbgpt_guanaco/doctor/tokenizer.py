"""Text → tokens → text, and messages → prompt, as this model does it."""

from collections.abc import Iterator
from typing import Any

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.encoding import TextEncoder
from dbgpt_guanaco.adapters.family import OWN_TEMPLATE, Family, find_family
from dbgpt_guanaco.doctor.findings import Finding, failure, ok, warning
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.engine.detokenizer import Vocabulary
from dbgpt_guanaco.types import ChatMessage

# Chinese as in a question to a database, emoji of several characters each, SQL.
TEXTS = ("2023年各地区的销售额是多少？", "👩‍🔧 🇨🇳", "SELECT `a` FROM t WHERE b >= 'ü';")
CONVERSATION = (
    ChatMessage("system", "You answer questions about data."),
    ChatMessage("user", "How many rows are there?"),
    ChatMessage("assistant", "Seven."),
    ChatMessage("user", "And how many columns?"),
)
# What the ids that a family states are called in every LLaMA tokenizer.
BOS, EOS = "<s>", "</s>"
ANOTHER = "take the tokenizer files of this very model, or set GUANACO_ADAPTER to its family"


def tokenizer(setup: Setup) -> Finding:
    """Load the tokenizer, and hold it against the family, the weights and some texts."""
    source, settings = setup.source, setup.settings.model
    family = find_family(source, setup.config, settings, default_registry())
    rows = int(setup.config.get_text_config().vocab_size)
    if problems := [*_wrong_ids(family), *_beyond(family, rows)]:
        return failure("\n".join(problems), ANOTHER)
    size = len(family.tokenizer)
    if broken := [text for text in TEXTS if _round_trip(family, text) != text]:
        return warning(
            f"{', '.join(broken)} does not come back from its tokens as it was: this model cannot "
            "write such text"
        )
    # Guanaco's has a pad token that LLaMA's weights lack; a text with it is refused.
    more = f" ({size - rows} of them unknown to the model)" if size > rows else ""
    return ok(f"{size:,} tokens{more}; Chinese, emoji and SQL come back as they were")


def template(setup: Setup) -> Finding:
    """Write a conversation as the server would."""
    family = setup.family
    prompt = family.template.render(CONVERSATION)
    lost = [m.content for m in CONVERSATION if m.content not in prompt.text]
    if lost:
        return failure(
            f"the template of {family.name} leaves out {lost[0]!r}",
            "set GUANACO_ADAPTER to the model's family",
        )
    ids = _encoder(family).encode(prompt.text, prompt.add_special_tokens)
    bos = family.tokenizer.bos_token_id if family.bos_token_id is None else family.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        return warning(f"the template of {family.name} writes the token that begins a text twice")
    ends = ", ".join([*map(repr, family.template.stop), *map(str, sorted(family.stop_token_ids))])
    whose = "the model's own" if family.name == OWN_TEMPLATE else f"of the family {family.name}"
    return ok(f"{whose}; four messages are {len(ids)} tokens; an answer ends at {ends}")


def _wrong_ids(family: Family) -> Iterator[str]:
    """Yield what the family believes of special tokens and the tokenizer says otherwise."""
    names = family.tokenizer.convert_ids_to_tokens
    known = {family.tokenizer.bos_token, family.tokenizer.eos_token, BOS, EOS}
    if not family.stop_token_ids:
        yield "no token is known that ends an answer"
    stated = {"begins a prompt with": family.bos_token_id, "ends an answer at": family.eos_token_id}
    for does, token_id in stated.items():
        if token_id is not None and (found := _name(names, token_id)) not in known:
            yield f"{family.name} {does} token {token_id}, which is {found!r} here"


def _name(names: Any, token_id: int) -> str | None:  # noqa: ANN401
    try:
        return str(names(token_id))
    except (IndexError, OverflowError):
        return None


def _beyond(family: Family, rows: int) -> Iterator[str]:
    """Yield texts with tokens that the model has no embedding for; they would be refused."""
    for text in TEXTS:
        highest = max(_encoder(family).encode(text, add_special_tokens=True))
        if highest >= rows:
            yield f"{text!r} has token {highest}, and the model has only {rows}"


def _round_trip(family: Family, text: str) -> str:
    ids = _encoder(family).encode(text, add_special_tokens=False)
    return Vocabulary(family.tokenizer).decode(ids)


def _encoder(family: Family) -> TextEncoder:
    return TextEncoder(family.tokenizer, family.bos_token_id)
