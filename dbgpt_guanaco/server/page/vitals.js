// The numbers of the server behind its one line of health: shown on request, kept up to date.

const NONE = '–';

export class VitalsPanel {
  #panel;
  #toggle;
  #rate = new Rate();

  /** @param {{panel: HTMLElement, toggle: HTMLElement}} parts a popover and the button of it */
  constructor({ panel, toggle }) {
    this.#panel = panel;
    this.#toggle = toggle;
    panel.addEventListener('toggle', (event) => {
      toggle.setAttribute('aria-expanded', String(event.newState === 'open'));
    });
    panel.addEventListener('beforetoggle', () => this.#place());
  }

  /** Take note of a new look at the server. */
  take(health) {
    this.#rate.take(health?.generation_tokens);
  }

  show(health, language) {
    const told = describeVitals(health ?? {}, this.#rate.tokensPerSecond, language);
    for (const [name, text] of Object.entries(told)) {
      this.#panel.querySelector(`[data-vital="${name}"]`).textContent = text;
    }
  }

  /** Below the button, wherever that stands. */
  #place() {
    const { left, bottom } = this.#toggle.getBoundingClientRect();
    this.#panel.style.left = `${left}px`;
    this.#panel.style.top = `${bottom + 4}px`;
  }
}

/** @returns {Record<string, string>} a text for each element with that data-vital */
export function describeVitals(health, tokensPerSecond, language) {
  const { running, waiting, slots, kv_blocks: blocks, kv_usage: usage } = health;
  const { prompt_tokens: asked, cached_tokens: found } = health;
  return {
    running: running === undefined ? NONE : language.text('ofSlots', { running, slots }),
    waiting: String(waiting ?? NONE),
    rate: tokensPerSecond === null ? NONE : tokensPerSecond.toFixed(1),
    kv: blocks ? percent(usage) : NONE,
    hits: asked ? percent(found / asked) : NONE,
  };
}

/** How fast a total grows between two looks at it. */
export class Rate {
  #total = null;
  #at = 0;
  tokensPerSecond = null;

  take(total) {
    const now = performance.now();
    const grown = total - this.#total;
    const isKnown = total !== undefined && this.#total !== null && grown >= 0 && now > this.#at;
    this.tokensPerSecond = isKnown ? (1000 * grown) / (now - this.#at) : null;
    this.#total = total ?? null;
    this.#at = now;
  }
}

function percent(share) {
  return `${Math.round(100 * share)}%`;
}
