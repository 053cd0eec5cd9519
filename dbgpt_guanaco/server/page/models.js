// The list of models to choose from.

export class ModelPicker {
  #select;
  #models = [];

  constructor(select) {
    this.#select = select;
  }

  get isEmpty() {
    return this.#models.length === 0;
  }

  get chosen() {
    return this.isEmpty ? '' : this.#select.value;
  }

  /** Offer those that chat; keep `preferred` chosen if it is among them. */
  offer(models, preferred, language) {
    this.#models = models.filter(({ kind }) => kind !== 'embedding');
    this.#select.replaceChildren(...this.#models.map(({ id }) => new Option(id, id)));
    this.#select.disabled = this.isEmpty;
    if (this.#models.some(({ id }) => id === preferred)) this.#select.value = preferred;
    this.relabel(language);
  }

  relabel(language) {
    if (this.isEmpty) this.#select.replaceChildren(new Option(language.text('noModel'), ''));
    const tokens = this.#models.find(({ id }) => id === this.chosen)?.max_model_len;
    const count = tokens?.toLocaleString(language.code);
    this.#select.title = count ? language.text('context', { tokens: count }) : '';
  }
}
