// openai for Node.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';
import { zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { FULL, KEY, KEYED, LOADING, LONG, MODEL, QUESTION, SERVER, STORY, all, cancelled } from './cases.mjs';

const of = (url, apiKey = 'none') => new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const client = of(SERVER);
const messages = [{ role: 'user', content: QUESTION }];
const ask = { model: MODEL, messages, max_tokens: 30, temperature: 0 };
const text = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? '').join('');

test('a chat, and its stream', async () => {
  const whole = await client.chat.completions.create(ask);
  assert.equal(whole.choices[0].finish_reason, 'stop');
  assert.ok(whole.choices[0].message.content);
  const chunks = await all(
    await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } }),
  );
  assert.equal(text(chunks), whole.choices[0].message.content);
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.equal(chunks.at(-1).usage.completion_tokens, whole.usage.completion_tokens);
});

test('log-probabilities and several answers', async () => {
  const answer = await client.chat.completions.create({ ...ask, n: 2, temperature: 1, seed: 1, logprobs: true, top_logprobs: 2 });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
  for (const token of answer.choices[0].logprobs.content) assert.equal(token.top_logprobs.length, 2);
});

test('stop is cut off', async () => {
  const free = (await client.chat.completions.create(ask)).choices[0].message.content;
  const stop = free.slice(6, 9);
  const cut = (await client.chat.completions.create({ ...ask, stop })).choices[0];
  assert.equal(cut.message.content, free.slice(0, free.indexOf(stop)));
});

test('an answer is parsed with zod', async () => {
  const Person = z.object({ name: z.string().max(12), age: z.number().int().min(0).max(120) });
  const answer = await client.chat.completions.parse({
    ...ask,
    max_tokens: 500,
    response_format: zodResponseFormat(Person, 'person'),
  });
  assert.ok(Person.safeParse(answer.choices[0].message.parsed).success);
});

test('the stream helper', async () => {
  const stream = client.chat.completions.stream(ask);
  let deltas = '';
  stream.on('content', (delta) => (deltas += delta));
  assert.equal((await stream.finalChatCompletion()).choices[0].message.content, deltas);
});

test('completions', async () => {
  const complete = { model: MODEL, prompt: STORY, max_tokens: 12, temperature: 0 };
  const whole = await client.completions.create(complete);
  const chunks = await all(await client.completions.create({ ...complete, stream: true }));
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.text ?? '').join(''), whole.choices[0].text);
});

test('models', async () => {
  assert.deepEqual((await all(client.models.list())).map((model) => model.id), [MODEL]);
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
  await assert.rejects(client.models.retrieve('nobody'), OpenAI.NotFoundError);
});

test('each error is an exception of its own', async () => {
  assert.ok((await of(KEYED, KEY).models.list()).data.length);
  await assert.rejects(of(KEYED, 'wrong').chat.completions.create(ask), OpenAI.AuthenticationError);
  await assert.rejects(client.chat.completions.create({ ...ask, top_p: 7 }), (error) => {
    assert.ok(error instanceof OpenAI.UnprocessableEntityError);
    assert.match(error.message, /`top_p` must be/);
    assert.deepEqual([error.param, error.code, error.type], ['top_p', 'validation', 'invalid_request_error']);
    return true;
  });
  for (const stream of [false, true]) {
    await assert.rejects(of(FULL).chat.completions.create({ ...ask, stream }), (error) => {
      assert.ok(error instanceof OpenAI.RateLimitError);
      assert.ok(Number(error.headers.get('retry-after')) >= 1);
      return true;
    });
    await assert.rejects(of(LOADING).chat.completions.create({ ...ask, stream }), (error) => {
      assert.ok(error instanceof OpenAI.InternalServerError && error.status === 503);
      assert.match(error.message, /currently loading/);
      return true;
    });
  }
});

test('an error inside a stream', async () => {
  const stream = await client.chat.completions.create(
    { ...ask, max_tokens: 1500, stream: true, grammar: LONG },
    { headers: { 'x-request-id': 'node-stream' } },
  );
  const chunks = stream[Symbol.asyncIterator]();
  await chunks.next();
  const rest = async () => {
    while (!(await chunks.next()).done);
  };
  await cancelled('node-stream', () =>
    assert.rejects(rest, (error) => error instanceof OpenAI.APIError && /cancelled/.test(error.message)),
  );
});

test('a left stream is cancelled', async () => {
  const left = async () => {
    const page = await (await fetch(`${SERVER}/metrics`)).text();
    return Number(/^tgi_request_failure\{err="dropped"\} (.*)$/m.exec(page)[1]);
  };
  const before = await left();
  const stream = await client.chat.completions.create({ ...ask, max_tokens: 1500, stream: true, grammar: LONG });
  for await (const _ of stream) break;
  // Each look waits for an answer; the runner's limit ends it.
  while (!((await left()) > before));
});
