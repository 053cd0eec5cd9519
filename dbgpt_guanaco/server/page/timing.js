// How fast one answer came: counted in content chunks while it runs, in tokens once they are known.

export class Timing {
  #start = performance.now();
  #first = null;
  #last = null;
  #chunks = 0;
  #usage = null;

  onText() {
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#chunks += 1;
  }

  onUsage(usage) {
    this.#usage = usage;
  }

  get waitedSeconds() {
    return (performance.now() - this.#start) / 1000;
  }

  /** @returns {{firstTokenSeconds: number|null, tokens: number, tokensPerSecond: number|null}} */
  summary() {
    const tokens = this.#usage?.completion_tokens ?? this.#chunks;
    const seconds = (this.#last - this.#first) / 1000;
    return {
      firstTokenSeconds: this.#first === null ? null : (this.#first - this.#start) / 1000,
      tokens,
      // The first token is the clock's zero, so it is not counted.
      tokensPerSecond: seconds > 0 && tokens > 1 ? (tokens - 1) / seconds : null,
    };
  }
}
