// What was said, and the small memory of this tab.

/**
 * @typedef {{role: 'user', content: string}} Question
 * @typedef {{role: 'assistant', content: string, state: State, stats: object, error?: object}} Answer
 * @typedef {'running' | 'stop' | 'length' | 'stopped' | 'failed'} State
 */

const STORE = 'guanaco';
const NO_STATS = { firstTokenSeconds: null, tokens: 0, tokensPerSecond: null };

/** @returns {Answer} */
export function newAnswer() {
  return { role: 'assistant', content: '', state: 'running', stats: NO_STATS };
}

/**
 * Messages for the server: the last one is the question to answer. A question that got no word of
 * an answer is left out with it, because most templates want the roles to alternate.
 */
export function historyOf(messages, system) {
  const said = messages.filter((message, index) => {
    const answer = message.role === 'assistant' ? message : messages[index + 1];
    return answer === undefined || answer.content !== '';
  });
  const history = said.map(({ role, content }) => ({ role, content }));
  return system ? [{ role: 'system', content: system }, ...history] : history;
}

/** Everything the tab remembers: it outlives a reload, not the tab. */
export class Memory {
  /** @returns {object} empty if there is nothing to remember */
  load() {
    try {
      return JSON.parse(sessionStorage.getItem(STORE)) ?? {};
    } catch {
      return {};
    }
  }

  /** @returns {boolean} false if it does not fit */
  save(everything) {
    try {
      sessionStorage.setItem(STORE, JSON.stringify(everything));
      return true;
    } catch {
      return false;
    }
  }
}
