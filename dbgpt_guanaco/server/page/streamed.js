// Markdown that is still being written: finished blocks are rendered once, only the last again.

// A last line that may yet become something else: a code fence, a table row or a table's head.
const UNDECIDED = [
  /(?:^|\n)[ ]{0,3}(?:`{1,2}|~{1,2}|`{3,}[^`\n]{0,40}|~{3,}[^\n]{0,40})$/,
  /(?:^|\n)\|[^\n]{0,400}$/,
  /(?:^|\n\n)\|[^\n]{0,400}\n[|:\- \t]{0,400}$/,
];

// A link whose address is still being written is shown as its text.
const OPEN_LINK = /!?\[([^[\]\n]{1,200})\]\([^()\s]{0,400}$/;

export class StreamedMarkdown {
  #markdown;
  #element;
  #decorate;
  #text = '';
  #settled = 0; // characters whose blocks are final
  #tail = []; // nodes of the last block
  #references = {};

  /** @param {(root: ParentNode) => void} decorate called with each new piece before it is shown */
  constructor(element, markdown, decorate) {
    this.#element = element;
    this.#markdown = markdown;
    this.#decorate = decorate;
  }

  /** Show the whole text so far; it must start with what was shown before. */
  show(text) {
    const hasNewLine = text.indexOf('\n', this.#text.length) >= 0;
    this.#text = text;
    if (hasNewLine) this.#settle();
    const tail = withoutUndecided(text.slice(this.#settled));
    // A copy, because a definition that is still being written must not count later.
    this.#replaceTail(this.#render(tail, { ...this.#references }));
  }

  /** Show the whole text once no more will come. */
  finish(text) {
    const references = { ...this.#references };
    this.#replaceTail(this.#render(text.slice(this.#settled), references));
    if (Object.keys(references).length === 0) return;
    // A link may stand before its definition, so now that all are known, start over.
    this.#element.replaceChildren(this.#render(text, {}));
  }

  #render(text, references) {
    const fragment = this.#markdown.render(text, references);
    this.#decorate(fragment);
    return fragment;
  }

  /** Move all complete blocks but the last out of the tail. An open line decides nothing yet. */
  #settle() {
    const lines = this.#text.slice(this.#settled, this.#text.lastIndexOf('\n') + 1);
    const length = lengthOfLines(lines, this.#markdown.lastBlockStart(lines));
    if (length === 0) return;
    this.#replaceTail(this.#render(lines.slice(0, length), this.#references));
    this.#tail = [];
    this.#settled += length;
  }

  #replaceTail(fragment) {
    if (updateCode(this.#tail, fragment)) return;
    for (const node of this.#tail) node.remove();
    this.#tail = [...fragment.childNodes];
    this.#element.append(fragment);
  }
}

/** Grow a code block in place, so that its scroll position, selection and button stay. */
function updateCode(tail, fragment) {
  const [old, now] = [onlyCode(tail), onlyCode([...fragment.childNodes])];
  if (!old || !now || old.dataset.language !== now.dataset.language) return false;
  const [shown, wanted] = [old, now].map((frame) => frame.querySelector('code'));
  const more = wanted.textContent;
  if (shown.textContent !== more) shown.textContent = more;
  return true;
}

function onlyCode(nodes) {
  const elements = nodes.filter((node) => node.nodeType === Node.ELEMENT_NODE);
  return elements.length === 1 && elements[0].matches('.code') ? elements[0] : null;
}

function withoutUndecided(text) {
  const decided = UNDECIDED.reduce((kept, pattern) => kept.replace(pattern, ''), text);
  return decided.replace(OPEN_LINK, '$1');
}

function lengthOfLines(text, lines) {
  const breaks = text.matchAll(/\r\n?|\n/g);
  let length = 0;
  for (let line = 0; line < lines; line += 1) {
    const { value } = breaks.next();
    length = value.index + value[0].length;
  }
  return length;
}
