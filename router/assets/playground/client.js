// Requests to the server, and its answers as one kind of event whatever the dialect.

/** What went wrong, in words for people. */
export class Failure extends Error {
  constructor(message, { status = 0, type = '' } = {}) {
    super(message);
    this.status = status;
    this.type = type;
  }
}

/** GET a JSON document. */
export async function fetchJson(path, key) {
  const response = await reach(path, { headers: authorization(key) });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

/**
 * Sends a request and yields events: {text, tokens, index} for text, {finish, index}, {usage} and {seed}.
 * A token is {text, id, logprob, special, top: [{text, logprob}]}.
 */
export async function* ask({ path, headers, body, streamed }, key, signal) {
  const response = await reach(path, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers, ...authorization(key) },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const read = path.startsWith('v1/') ? readChat : readNative;
  if (!streamed && !response.headers.get('content-type')?.startsWith('text/event-stream')) {
    yield* path.startsWith('v1/') ? wholeChat(await response.json()) : wholeNative(JSON.parse(await response.text(), exact));
    return;
  }
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === '[DONE]') break;
    const value = JSON.parse(data, exact);
    if (value.error) throw failure(value, 200);
    for (const event of read(value)) {
      finished ||= event.finish !== undefined;
      yield event;
    }
  }
  if (!finished) throw new Failure('The connection broke before the answer was complete.');
}

/** A seed may have more digits than a double: it is kept as it is written. */
function exact(name, value, context) {
  return name === 'seed' && typeof value === 'number' && !Number.isSafeInteger(value) ? context?.source ?? value : value;
}

async function reach(path, options) {
  try {
    return await fetch(new URL(path, document.baseURI), options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Failure('The server cannot be reached. Is it still running?');
  }
}

function authorization(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** The data of each server-sent event. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).replaceAll('\r\n', '\n').split('\n\n');
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split('\n').filter((line) => line.startsWith('data:'));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, '')).join('\n');
      }
    }
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Failure('The connection broke before the answer was complete.');
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function refusal(response) {
  let value = {};
  try {
    value = await response.json();
  } catch {
    // The status says it all.
  }
  return failure(value, response.status, response.headers.get('retry-after'));
}

function failure(value, status, retryAfter) {
  const told = value.error?.message ?? value.error ?? value.message ?? '';
  const said = String(told).replace(/^Input validation error: /, '');
  const type = value.error_type ?? value.error?.type ?? '';
  const soon = value.estimated_time ?? retryAfter;
  const later = soon ? ` Try again in ${Math.ceil(Number(soon))} s.` : '';
  const detail = said ? ` It says: ${said}` : '';
  const words = {
    401: 'This server asks for an API key. Enter one under Settings.',
    403: `This API key may not do that.${detail}`,
    404: `The server does not have that.${detail}`,
    413: `The request is too large.${detail}`,
    429: `The server is busy.${later}`,
    503: /load/i.test(said) ? `The model is still loading.${later}` : `The server is not available.${later}${detail}`,
  };
  const message = words[status]
    ?? (status >= 500 || status === 200 ? `The server failed.${detail}` : `The server refused the request.${detail}`);
  return new Failure(message, { status, type });
}

function nativeToken({ id, text, logprob, special }, top = []) {
  return { id, text, logprob, special, top: top.map(({ id, text, logprob }) => ({ id, text, logprob })) };
}

function* readNative({ token, top_tokens: top, details, generated_text: all }) {
  yield { index: 0, text: token.special ? '' : token.text, tokens: [nativeToken(token, top)] };
  if (all === null || all === undefined) return;
  yield { index: 0, finish: details?.finish_reason ?? 'done' };
  if (details?.input_length !== undefined) {
    yield { usage: { prompt: details.input_length, generated: details.generated_tokens } };
  }
  if (details?.seed !== null && details?.seed !== undefined) yield { seed: details.seed };
}

function* wholeNative({ generated_text: text, details }) {
  const prompt = (details?.prefill ?? []).map((token) => ({ ...nativeToken(token), prompt: true }));
  if (prompt.length) yield { index: 0, text: prompt.map((token) => token.text).join(''), tokens: prompt };
  const tokens = (details?.tokens ?? []).map((token, place) => nativeToken(token, details.top_tokens?.[place]));
  yield { index: 0, text: tokens.length ? tokens.filter((one) => !one.special).map((one) => one.text).join('') : text, tokens };
  yield { index: 0, finish: details?.finish_reason ?? 'done' };
  yield { usage: { prompt: prompt.length || undefined, generated: details?.generated_tokens } };
  if (details?.seed !== null && details?.seed !== undefined) yield { seed: details.seed };
}

const chatToken = ({ token, logprob, top_logprobs: top = [] }) => ({
  text: token,
  logprob,
  top: top.map(({ token: text, logprob: value }) => ({ text, logprob: value })),
});

function* readChat({ choices = [], usage }) {
  for (const { index, delta = {}, logprobs, finish_reason: finish } of choices) {
    const tokens = (logprobs?.content ?? []).map(chatToken);
    const text = delta.content ?? '';
    if (text !== '' || tokens.length) yield { index, text, tokens };
    for (const call of delta.tool_calls ?? []) yield { index, call };
    if (finish) yield { index, finish };
  }
  if (usage) yield usageOf(usage);
}

function* wholeChat({ choices = [], usage }) {
  for (const { index, message, logprobs, finish_reason: finish } of choices) {
    yield { index, text: message.content ?? '', tokens: (logprobs?.content ?? []).map(chatToken) };
    for (const [place, call] of (message.tool_calls ?? []).entries()) yield { index, call: { index: place, ...call } };
    yield { index, finish };
  }
  if (usage) yield usageOf(usage);
}

const usageOf = ({ prompt_tokens: prompt, completion_tokens: generated, prompt_tokens_details: details }) => ({
  usage: { prompt, generated, cached: details?.cached_tokens },
});
