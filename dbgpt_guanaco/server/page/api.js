// The server as the page sees it: models, health, and one streamed answer at a time.

/** What went wrong, in words a reader can use. `key` names a string of ours, `message` the server's. */
export class ServerError extends Error {
  constructor(message, { key = null, status = null } = {}) {
    super(message);
    this.key = key;
    this.status = status;
  }
}

export class Server {
  /** Sent as a bearer token when not empty. */
  key = '';

  /** @returns {Promise<{id: string, max_model_len?: number}[]>} */
  async models() {
    const response = await this.#request('/v1/models', { signal: AbortSignal.timeout(5000) });
    return (await json(response)).data;
  }

  /** @returns {Promise<object>} what /health tells: a status, and numbers where the engine has them */
  async health() {
    const response = await this.#fetch('/health', { signal: AbortSignal.timeout(5000) });
    const health = await json(response); // an engine that is lost says so with 503 and the same object
    if (typeof health.status !== 'string') throw new ServerError('', { key: 'unreadable' });
    return health;
  }

  /**
   * Ask for an answer. Ends when the server says the answer is over; throws a ServerError when it
   * says otherwise or nothing. Aborting the signal closes the connection, which is how the server
   * learns that nobody waits for the answer.
   *
   * @yields {{text: string, finishReason: string | null, usage: object | null}}
   */
  async *chat(body, signal) {
    const response = await this.#request('/v1/chat/completions', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(body),
      signal,
    });
    for await (const data of eventData(response.body)) {
      if (data === '[DONE]') return;
      const chunk = parse(data);
      if (chunk.error) throw new ServerError(messageOf(chunk.error));
      const choice = chunk.choices?.[0];
      yield {
        text: choice?.delta?.content ?? '',
        finishReason: choice?.finish_reason ?? null,
        usage: chunk.usage ?? null,
      };
    }
    throw new ServerError('', { key: 'cutShort' });
  }

  async #request(path, options) {
    const response = await this.#fetch(path, options);
    if (response.ok) return response;
    if (response.status === 401) {
      throw new ServerError('', { key: this.key ? 'keyWrong' : 'keyNeeded', status: 401 });
    }
    throw await refusal(response);
  }

  async #fetch(path, options) {
    const headers = { ...options.headers };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    try {
      return await fetch(path, { cache: 'no-store', ...options, headers });
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new ServerError(error.message, { key: 'unreachable' });
    }
  }
}

/** Read the data of each server-sent event; characters split between two reads stay whole. */
async function* eventData(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  let data = [];
  try {
    for (;;) {
      const { done, value } = await readOrThrow(reader);
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith('data:')) data.push(line.slice(5).replace(/^ /, ''));
        if (line === '' && data.length) {
          yield data.join('\n');
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // already closed or aborted
  }
}

async function readOrThrow(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ServerError(error.message, { key: 'cutShort' });
  }
}

async function refusal(response) {
  const status = response.status;
  const text = await response.text();
  try {
    return new ServerError(messageOf(JSON.parse(text).error), { status });
  } catch {
    return new ServerError(`${status} ${response.statusText}`.trim(), { status });
  }
}

async function json(response) {
  return parse(await response.text());
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new ServerError('', { key: 'unreadable' });
  }
}

function messageOf(error) {
  return error.code ? `${error.message} (${error.code})` : error.message;
}
