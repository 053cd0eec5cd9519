// Who is waiting at the server, asked every two seconds while somebody looks.

const EVERY_MS = 2000;

export class HealthWatch {
  #server;
  #onHealth;
  #timer = 0;
  #looks = 0;

  /** @param {(health: object | null) => void} onHealth null: the server is away */
  constructor(server, onHealth) {
    this.#server = server;
    this.#onHealth = onHealth;
    document.addEventListener('visibilitychange', () => this.look());
  }

  /** Look now, then every two seconds. */
  async look() {
    clearTimeout(this.#timer);
    const look = (this.#looks += 1);
    if (document.hidden) return;
    const health = await this.#server.health().catch(() => null);
    if (this.#looks !== look) return; // a later look answers instead
    this.#onHealth(health);
    this.#timer = setTimeout(() => this.look(), EVERY_MS);
  }
}

/** @returns {{state: string, text: string}} the state picks a colour, the text says the same */
export function describeHealth(health, language) {
  if (health === undefined) return { state: 'unknown', text: language.text('looking') };
  if (health === null) return { state: 'away', text: language.text('away') };
  const { status, running, waiting, slots } = health;
  if (status === 'loading') return describeLoading(health, language);
  if (status === 'draining') return { state: 'away', text: language.text('draining') };
  if (status !== 'ok') return { state: 'away', text: language.text('odd', { status }) };
  if (running === 0 && waiting === 0) {
    return { state: 'idle', text: language.text(slots === 1 ? 'idleOne' : 'idle', { slots }) };
  }
  const state = running < slots ? 'idle' : 'busy';
  return { state, text: language.text('busy', { running, waiting, slots }) };
}

function describeLoading({ stage, done, total, seconds }, language) {
  const counted = total ? ` ${Math.floor((100 * done) / total)} %` : '';
  const values = { stage, counted, seconds: Math.round(seconds) };
  return { state: 'busy', text: language.text('loading', values) };
}
