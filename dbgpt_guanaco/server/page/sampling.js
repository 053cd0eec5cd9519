// The settings panel: what the reader set, as fields of the request body.

const NUMBERS = [
  'temperature', 'top_p', 'top_k', 'min_p', 'repetition_penalty', 'max_tokens', 'seed',
];

export class SamplingForm {
  #form;

  constructor(form) {
    this.#form = form;
    form.addEventListener('submit', (event) => event.preventDefault());
  }

  /** What stands in each field, to be kept over a reload. */
  get values() {
    return Object.fromEntries(this.#fields.map((field) => [field.name, field.value]));
  }

  set values(values) {
    for (const field of this.#fields) field.value = values[field.name] ?? '';
  }

  get key() {
    return this.#form.elements.key.value;
  }

  get system() {
    return this.#form.elements.system.value.trim();
  }

  /** The first field that cannot be sent, or null. */
  get firstInvalid() {
    return this.#fields.find((field) => !field.checkValidity()) ?? null;
  }

  /** Fields of the request body; a field that was left empty is not among them. */
  get body() {
    const body = {};
    for (const name of NUMBERS) {
      const { value } = this.#form.elements[name];
      if (value !== '') body[name] = Number(value);
    }
    const stop = lines(this.#form.elements.stop.value);
    if (stop.length) body.stop = stop;
    return body;
  }

  get count() {
    return Object.keys(this.body).length + (this.system ? 1 : 0);
  }

  /** Empty every field but the API key. */
  clear() {
    this.values = { key: this.key };
  }

  get #fields() {
    return [...this.#form.elements].filter((field) => field.name);
  }
}

function lines(text) {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => line.replaceAll('\\n', '\n'));
}
