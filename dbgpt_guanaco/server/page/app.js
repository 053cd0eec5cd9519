// The chat page: puts the parts together and decides what happens when.

import { fail, writeAnswer } from '/page/answering.js';
import { Server, ServerError } from '/page/api.js';
import { copyWith } from '/page/clipboard.js';
import { historyOf, Memory, newAnswer } from '/page/conversation.js';
import { describeHealth, HealthWatch } from '/page/health.js';
import { AnswerView, Log, QuestionView } from '/page/log.js';
import { Markdown } from '/page/markdown.js';
import { ModelPicker } from '/page/models.js';
import { SamplingForm } from '/page/sampling.js';
import { SettingsPanel } from '/page/settings.js';
import { Language } from '/page/strings.js';
import { VitalsPanel } from '/page/vitals.js';

// A small model may not find an end by itself, and a page has no other to give it.
const DEFAULT_MAX_TOKENS = 1024;

const byId = (id) => document.getElementById(id);

class App {
  #server = new Server();
  #memory = new Memory();
  #markdown = new Markdown();
  #sampling = new SamplingForm(byId('settings-form'));
  #panel = new SettingsPanel({
    panel: byId('settings'), toggle: byId('settings-toggle'), close: byId('settings-close'),
    rest: byId('main'),
  });
  #vitals = new VitalsPanel({ panel: byId('vitals'), toggle: byId('health') });
  #models = new ModelPicker(byId('model'));
  #log = new Log({ scroller: byId('scroller'), list: byId('log'), jump: byId('jump') });
  #draft = byId('draft');
  #notice = byId('notice');
  #language;
  #messages;
  #answerViews = new Map(); // from answer to its view
  #preferredModel;
  #health; // undefined until the first look, null while the server is away
  #watch = new HealthWatch(this.#server, (health) => this.#onHealth(health));
  #hasAskedForKey = false;
  #running = null; // AbortController of the answer being written

  constructor() {
    const { language, messages = [], model = '', sampling = {}, draft = '' } = this.#memory.load();
    this.#language = language ? new Language(language) : Language.ofBrowser();
    this.#preferredModel = model;
    this.#sampling.values = sampling;
    this.#draft.value = draft;
    this.#messages = messages;
    for (const message of messages) {
      if (message.state === 'running') fail(message, new ServerError('', { key: 'cutShort' }));
    }
  }

  start() {
    this.#listen();
    this.#useKey();
    this.#applyLanguage();
    this.#models.offer([], '', this.#language);
    this.#messages.forEach((message) => this.#show(message));
    this.#fitDraft();
    this.#onSettings();
    this.#watch.look();
    this.#draft.focus();
  }

  #listen() {
    byId('composer').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#send();
    });
    this.#draft.addEventListener('keydown', (event) => this.#onKey(event));
    this.#draft.addEventListener('input', () => this.#fitDraft());
    byId('stop').addEventListener('click', () => this.#running?.abort());
    byId('new').addEventListener('click', () => this.#startOver());
    byId('language').addEventListener('click', () => this.#switchLanguage());
    byId('model').addEventListener('change', () => this.#onModel());
    byId('log').addEventListener('click', (event) => this.#onAction(event));
    byId('settings-form').addEventListener('input', () => this.#onSettings());
    byId('settings-form').elements.key.addEventListener('change', () => this.#onKeyChange());
    byId('settings-reset').addEventListener('click', () => {
      this.#sampling.clear();
      this.#onSettings();
    });
    window.addEventListener('pagehide', () => this.#save());
  }

  // Sending

  #onKey(event) {
    // While an input method composes, Enter picks a word; Safari says so only by the key code.
    const isComposing = event.isComposing || event.keyCode === 229;
    if (event.key !== 'Enter' || event.shiftKey || isComposing) return;
    event.preventDefault();
    this.#send();
  }

  #send() {
    const content = this.#draft.value.trim();
    if (!content || !this.#canAnswer()) return;
    this.#draft.value = '';
    this.#fitDraft();
    const question = { role: 'user', content };
    this.#messages.push(question);
    this.#show(question);
    this.#answer();
  }

  #retry() {
    if (!this.#canAnswer()) return;
    const answer = this.#messages.pop();
    this.#answerViews.get(answer).element.remove();
    this.#answerViews.delete(answer);
    this.#answer();
  }

  #canAnswer() {
    if (this.#running) return false;
    this.#say('');
    const invalid = this.#sampling.firstInvalid;
    if (invalid) {
      this.#panel.open();
      this.#say('badSetting', { name: invalid.labels[0].firstElementChild.textContent });
      invalid.reportValidity();
      return false;
    }
    if (this.#models.isEmpty) this.#say('noModelYet');
    return !this.#models.isEmpty;
  }

  async #answer() {
    const body = {
      model: this.#models.chosen,
      messages: historyOf(this.#messages, this.#sampling.system),
      stream: true,
      stream_options: { include_usage: true },
      max_tokens: DEFAULT_MAX_TOKENS,
      ...this.#sampling.body,
    };
    const answer = newAnswer();
    this.#messages.push(answer);
    const view = this.#show(answer);
    this.#log.follow();
    const controller = this.#begin();
    const chunks = this.#server.chat(body, controller.signal);
    try {
      await writeAnswer(answer, view, chunks, () => this.#health?.waiting ?? 0);
    } finally {
      this.#end(controller, answer);
    }
  }

  #begin() {
    this.#running = new AbortController();
    this.#log.isBusy = true;
    this.#showRunning();
    this.#save();
    return this.#running;
  }

  #end(controller, answer) {
    if (this.#running !== controller) return; // a new conversation took its place
    this.#running = null;
    this.#log.isBusy = false;
    this.#showRunning();
    this.#save();
    if (answer.state === 'stop') this.#say('finished', {}, 'spoken');
    this.#watch.look();
  }

  #showRunning() {
    const isRunning = this.#running !== null;
    const hadFocus = [byId('send'), byId('stop')].includes(document.activeElement);
    byId('send').hidden = isRunning;
    byId('stop').hidden = !isRunning;
    if (hadFocus) byId(isRunning ? 'stop' : 'send').focus();
  }

  #startOver() {
    this.#running?.abort();
    this.#running = null;
    this.#messages = [];
    this.#answerViews.clear();
    this.#log.clear();
    this.#log.isBusy = false;
    byId('empty').hidden = false;
    this.#showRunning();
    this.#say('');
    this.#save();
    this.#draft.focus();
  }

  // Showing

  #show(message) {
    byId('empty').hidden = true;
    if (message.role === 'user') {
      this.#log.add(new QuestionView(message, this.#language));
      return null;
    }
    const view = new AnswerView(message, this.#markdown, this.#language);
    this.#answerViews.set(message, view);
    if (message.state !== 'running') view.finish();
    else view.relabel(this.#language);
    this.#log.add(view);
    return view;
  }

  #fitDraft() {
    this.#draft.style.height = 'auto';
    this.#draft.style.height = `${this.#draft.scrollHeight}px`;
  }

  /** Tell the reader something above the composer; `kind` "spoken" is for screen readers only. */
  #say(key, values = {}, kind = 'shown') {
    this.#notice.dataset.kind = kind;
    this.#notice.textContent = key ? this.#language.text(key, values) : '';
  }

  #onAction(event) {
    const button = event.target.closest('button[data-action]');
    const action = button?.dataset.action;
    if (action === 'retry') this.#retry();
    if (action === 'copy-code') this.#copy(button, codeOf(button));
    if (action === 'copy-answer') this.#copy(button, this.#answerOf(button).content);
  }

  #answerOf(button) {
    const element = button.closest('.answer');
    return this.#messages.find((message) => this.#answerViews.get(message)?.element === element);
  }

  async #copy(button, text) {
    if (!(await copyWith(button, text, this.#language))) this.#say('copyFailed');
  }

  // Server, settings, language

  async #onHealth(health) {
    this.#health = health;
    this.#vitals.take(health);
    this.#showHealth();
    if (health?.status === 'ok' && this.#models.isEmpty) await this.#loadModels();
  }

  #showHealth() {
    const { state, text } = describeHealth(this.#health, this.#language);
    byId('health').dataset.state = state;
    byId('health-text').textContent = text;
    this.#vitals.show(this.#health, this.#language);
  }

  async #loadModels() {
    try {
      const models = await this.#server.models();
      this.#models.offer(models, this.#preferredModel, this.#language);
      this.#say('');
    } catch (error) {
      if (error instanceof ServerError && error.status === 401) this.#askForKey(error.key);
    }
  }

  /** Say which is wrong, a key or none; show the field for it, but once: the reader may close it. */
  #askForKey(problem) {
    this.#say(problem);
    if (!this.#hasAskedForKey) this.#panel.open('input[name=key]');
    this.#hasAskedForKey = true;
  }

  #onModel() {
    this.#preferredModel = this.#models.chosen;
    this.#models.relabel(this.#language);
    this.#save();
  }

  #onSettings() {
    this.#useKey();
    const count = this.#sampling.count;
    byId('settings-count').textContent = count;
    byId('settings-count').hidden = count === 0;
    this.#save();
  }

  #onKeyChange() {
    this.#useKey();
    this.#loadModels();
    this.#watch.look();
  }

  #useKey() {
    this.#server.key = this.#sampling.key;
  }

  #switchLanguage() {
    this.#language = this.#language.other;
    this.#applyLanguage();
    this.#save();
  }

  #applyLanguage() {
    document.documentElement.lang = this.#language.tag;
    this.#language.apply(document);
    this.#answerViews.forEach((view) => view.relabel(this.#language));
    this.#models.relabel(this.#language);
    this.#showHealth();
    const button = byId('language');
    button.textContent = this.#language.text('otherLanguage');
    button.lang = this.#language.other.tag;
    this.#say('');
  }

  #save() {
    const isKept = this.#memory.save({
      language: this.#language.code,
      messages: this.#messages,
      model: this.#preferredModel,
      sampling: this.#sampling.values,
      draft: this.#draft.value,
    });
    if (!isKept) this.#say('notKept');
  }
}

function codeOf(button) {
  return button.closest('.code').querySelector('code').textContent;
}

new App().start();
