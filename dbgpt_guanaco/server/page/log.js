// The conversation on screen: questions, answers, and where the reader is in them.

import { StreamedMarkdown } from '/page/streamed.js';

const NEAR_END = 24; // pixels

export class Log {
  #scroller;
  #list;
  #jump;
  #lastTop = 0;
  #follows = true;

  constructor({ scroller, list, jump }) {
    this.#scroller = scroller;
    this.#list = list;
    this.#jump = jump;
    scroller.addEventListener('scroll', () => this.#onScroll(), { passive: true });
    jump.addEventListener('click', () => this.follow());
    new ResizeObserver(() => this.#keepUp()).observe(list);
    new ResizeObserver(() => this.#keepUp()).observe(scroller);
  }

  add(view) {
    this.#list.append(view.element);
  }

  clear() {
    this.#list.replaceChildren();
    this.follow();
  }

  set isBusy(isBusy) {
    this.#list.setAttribute('aria-busy', String(isBusy));
  }

  /** Go to the end and stay there until the reader scrolls away. */
  follow() {
    this.#follows = true;
    this.#keepUp();
  }

  #keepUp() {
    if (this.#follows) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#showJump();
  }

  #onScroll() {
    const top = this.#scroller.scrollTop;
    if (this.#distance() < NEAR_END) this.#follows = true;
    else if (top < this.#lastTop) this.#follows = false;
    this.#lastTop = top;
    this.#showJump();
  }

  #distance() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight;
  }

  #showJump() {
    this.#jump.hidden = this.#follows || this.#distance() < NEAR_END;
  }
}

export class QuestionView {
  constructor(message) {
    this.element = make('article', 'question', { label: 'question' });
    const text = make('div', 'bubble');
    text.textContent = message.content;
    this.element.append(text);
  }
}

/** One answer. `message` is the stored answer; the view shows it and never changes it. */
export class AnswerView {
  #message;
  #language;
  #streamed;
  #line = make('p', 'stats');
  #note = make('p', 'note');
  #frame = 0;
  #notBefore = 0;
  #waiting = null;

  constructor(message, markdown, language) {
    this.#message = message;
    this.#language = language;
    this.element = make('article', 'answer', { label: 'answer' });
    const prose = make('div', 'prose');
    this.#streamed = new StreamedMarkdown(prose, markdown, (root) => this.#decorate(root));
    const foot = make('div', 'foot');
    foot.append(this.#line, actionButton('copy-answer', 'copy'), actionButton('retry', 'retry'));
    this.element.append(prose, this.#note, foot);
  }

  /** Show what was added to the message, at most once per animation frame. */
  grow() {
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  /** Say how long the answer has not begun; `inLine` is the number of requests that wait. */
  wait(seconds, inLine) {
    this.#waiting = { seconds, inLine };
    this.#relabelLine();
  }

  /** Show the message in its final state. */
  finish() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#waiting = null;
    this.#streamed.finish(this.#message.content);
    this.element.classList.toggle('wordless', this.#message.content === '');
    this.relabel(this.#language);
  }

  relabel(language) {
    this.#language = language;
    language.apply(this.element);
    this.#relabelLine();
    this.#relabelNote();
  }

  #draw() {
    this.#frame = 0;
    const start = performance.now();
    if (start < this.#notBefore) {
      this.grow();
      return;
    }
    this.#waiting = null;
    this.#streamed.show(this.#message.content);
    this.#relabelLine();
    // A block that takes long to draw is drawn less often: a quarter of the time at most.
    this.#notBefore = performance.now() + 3 * (performance.now() - start);
  }

  #decorate(root) {
    for (const frame of root.querySelectorAll('.code')) frame.prepend(codeHead(frame.dataset.language));
    this.#language.apply(root);
  }

  #relabelLine() {
    this.#line.textContent = this.#waiting
      ? waitingText(this.#waiting, this.#language)
      : statsText(this.#message.stats, this.#language);
  }

  #relabelNote() {
    const { state, error } = this.#message;
    this.#note.dataset.state = state;
    this.#note.textContent = noteText(state, error, this.#language);
  }
}

function waitingText({ seconds, inLine }, language) {
  const values = { seconds: seconds.toFixed(1), waiting: inLine };
  return language.text(inLine > 0 ? 'waitingInLine' : 'waiting', values);
}

function statsText({ firstTokenSeconds, tokens, tokensPerSecond }, language) {
  if (firstTokenSeconds === null) return '';
  const parts = [language.text(tokens === 1 ? 'token' : 'tokens', { tokens })];
  if (tokensPerSecond !== null) {
    parts.push(language.text('rate', { rate: tokensPerSecond.toFixed(tokensPerSecond < 100 ? 1 : 0) }));
  }
  parts.push(language.text('firstToken', { seconds: firstTokenSeconds.toFixed(2) }));
  return parts.join(' · ');
}

function noteText(state, error, language) {
  if (state === 'failed') {
    return `${language.text('failed')}: ${error.key ? language.text(error.key) : error.message}`;
  }
  return ['stopped', 'length'].includes(state) ? language.text(state) : '';
}

function codeHead(codeLanguage) {
  const head = make('div', 'code-head');
  const name = make('span', '', codeLanguage ? {} : { text: 'code' });
  if (codeLanguage) name.textContent = codeLanguage;
  head.append(name, actionButton('copy-code', 'copy'));
  return head;
}

function actionButton(action, text) {
  const button = make('button', 'quiet', { action, text });
  button.type = 'button';
  return button;
}

function make(tag, className, data = {}) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  Object.assign(element.dataset, data);
  return element;
}
