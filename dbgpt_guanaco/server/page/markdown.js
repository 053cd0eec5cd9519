// Model output → DOM. The text is an attacker's: nothing leaves here but what is listed below.

import createDOMPurify from '/page/vendor/dompurify/purify.es.mjs';
import MarkdownIt from '/page/vendor/markdown-it/markdown-it.esm.min.mjs';

const TAGS = [
  'a', 'blockquote', 'br', 'code', 'em', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'hr', 'li', 'ol', 'p',
  'pre', 's', 'strong', 'table', 'tbody', 'td', 'th', 'thead', 'tr', 'ul',
];
const ATTRIBUTES = ['align', 'class', 'href', 'start'];
const LINK = /^(?:https?:\/\/|mailto:)/i;
const CODE_LANGUAGE = /^language-([\w+#.-]{1,24})$/;

export class Markdown {
  #markdown = createMarkdownIt();
  #blocks = createBlockParser();
  #purifier = createPurifier();

  /** The line where the last top-level block starts: what stands before it can no longer change. */
  lastBlockStart(text) {
    const starts = this.#blocks
      .parse(text, {})
      .filter((token) => token.level === 0 && token.nesting >= 0 && token.map)
      .map((token) => token.map[0]);
    return starts.at(-1) ?? 0;
  }

  /**
   * @param {object} references link definitions seen so far; new ones are added
   * @returns {DocumentFragment}
   */
  render(text, references = {}) {
    const html = this.#markdown.render(text, { references });
    const fragment = this.#purifier.sanitize(html, {
      ALLOWED_TAGS: TAGS,
      ALLOWED_ATTR: ATTRIBUTES,
      ALLOW_ARIA_ATTR: false,
      ALLOW_DATA_ATTR: false,
      RETURN_DOM_FRAGMENT: true,
    });
    fragment.querySelectorAll('pre').forEach(frameCode);
    fragment.querySelectorAll('table').forEach(frameTable);
    return fragment;
  }
}

function createMarkdownIt() {
  const markdown = new MarkdownIt({ html: false, linkify: true, breaks: false });
  markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
  markdown.validateLink = (url) => LINK.test(url.trim());
  const { rules } = markdown.renderer;
  // A style attribute would break the page's Content-Security-Policy.
  rules.th_open = rules.td_open = (tokens, index, options, env, self) => {
    const style = tokens[index].attrGet('style');
    if (style) tokens[index].attrs = [['align', style.replace('text-align:', '')]];
    return self.renderToken(tokens, index, options);
  };
  // A remote image would tell its host who reads what: show a link instead.
  rules.image = (tokens, index) => {
    const { escapeHtml } = markdown.utils;
    const url = tokens[index].attrGet('src');
    return `<a href="${escapeHtml(url)}">${escapeHtml(tokens[index].content || url)}</a>`;
  };
  return markdown;
}

function createBlockParser() {
  const markdown = new MarkdownIt({ html: false });
  markdown.core.ruler.enableOnly(['normalize', 'block']);
  return markdown;
}

function createPurifier() {
  const purifier = createDOMPurify(window);
  purifier.addHook('afterSanitizeAttributes', (element) => {
    if (element.tagName === 'A') guardLink(element);
    if (!(element.tagName === 'CODE' && CODE_LANGUAGE.test(element.className))) {
      element.removeAttribute('class');
    }
  });
  return purifier;
}

function guardLink(link) {
  if (!LINK.test(link.getAttribute('href') ?? '')) {
    link.removeAttribute('href');
    return;
  }
  link.title = link.href;
  link.target = '_blank';
  link.rel = 'noopener noreferrer nofollow';
}

function frameCode(pre) {
  const code = pre.querySelector('code');
  const language = code?.className.match(CODE_LANGUAGE)?.[1] ?? '';
  code?.removeAttribute('class');
  const frame = pre.ownerDocument.createElement('div');
  frame.className = 'code';
  frame.dataset.language = language;
  pre.replaceWith(frame);
  pre.tabIndex = 0; // so that a keyboard can scroll it
  frame.append(pre);
}

function frameTable(table) {
  const frame = table.ownerDocument.createElement('div');
  frame.className = 'table';
  frame.tabIndex = 0;
  table.replaceWith(frame);
  frame.append(table);
}
