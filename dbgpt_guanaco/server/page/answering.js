// One answer, from the first moment of waiting to its end.

import { ServerError } from '/page/api.js';
import { Timing } from '/page/timing.js';

const CLOCK_MS = 100;

/**
 * Fill an answer with what the server sends, and show it. An error becomes the answer's own; only
 * a mistake of this page is thrown.
 *
 * @param {AsyncIterable} chunks as `Server.chat` yields them
 * @param {() => number} waitingInLine how many requests wait at the server now
 */
export async function writeAnswer(answer, view, chunks, waitingInLine) {
  const timing = new Timing();
  const tick = () => {
    if (answer.content === '') view.wait(timing.waitedSeconds, waitingInLine());
  };
  const clock = setInterval(tick, CLOCK_MS);
  tick();
  try {
    await receive(answer, view, chunks, timing);
  } catch (error) {
    fail(answer, error);
  } finally {
    clearInterval(clock);
    answer.stats = timing.summary();
    view.finish();
  }
}

/** Note in the answer why it ended early. */
export function fail(answer, error) {
  if (error.name === 'AbortError') {
    answer.state = 'stopped';
    return;
  }
  answer.state = 'failed';
  answer.error = { key: error.key ?? null, message: error.message };
  if (!(error instanceof ServerError)) throw error;
}

async function receive(answer, view, chunks, timing) {
  for await (const { text, finishReason, usage } of chunks) {
    if (usage) timing.onUsage(usage);
    if (finishReason) answer.state = finishReason === 'length' ? 'length' : 'stop';
    if (!text) continue;
    timing.onText();
    answer.content += text;
    answer.stats = timing.summary();
    view.grow();
  }
  if (answer.state === 'running') answer.state = 'stop';
}
