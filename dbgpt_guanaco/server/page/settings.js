// The settings panel: a column beside the conversation, or a sheet over it on a narrow screen.

export class SettingsPanel {
  #panel;
  #toggle;
  #rest;
  #isNarrow = window.matchMedia('(max-width: 60rem)');

  constructor({ panel, toggle, close, rest }) {
    this.#panel = panel;
    this.#toggle = toggle;
    this.#rest = rest;
    toggle.addEventListener('click', () => (panel.hidden ? this.open() : this.close()));
    close.addEventListener('click', () => this.close());
    panel.addEventListener('keydown', (event) => {
      if (event.key === 'Escape' && !event.isComposing) this.close();
    });
    this.#isNarrow.addEventListener('change', () => this.#coverRest());
  }

  /** Show the panel, and put the cursor into its first field or another one. */
  open(field = 'textarea') {
    this.#panel.hidden = false;
    this.#toggle.setAttribute('aria-expanded', 'true');
    this.#coverRest();
    this.#panel.querySelector(field).focus();
  }

  close() {
    this.#panel.hidden = true;
    this.#toggle.setAttribute('aria-expanded', 'false');
    this.#coverRest();
    this.#toggle.focus();
  }

  /** What lies under the sheet cannot be reached by keyboard. */
  #coverRest() {
    this.#rest.inert = this.#isNarrow.matches && !this.#panel.hidden;
  }
}
