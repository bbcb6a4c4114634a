// The Vercel AI SDK with its provider for servers that are compatible with OpenAI's.

import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { APICallError, Output, generateObject, generateText, streamObject, streamText } from 'ai';
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { z } from 'zod';
import { FULL, KEY, KEYED, LOADING, LONG, MODEL, QUESTION, SERVER, STORY, all, cancelled } from './cases.mjs';

const of = (url, settings = {}) =>
  createOpenAICompatible({
    name: 'lockstep',
    baseURL: `${url}/v1`,
    includeUsage: true,
    supportsStructuredOutputs: true,
    ...settings,
  });
const model = of(SERVER)(MODEL);
const ask = { model, prompt: QUESTION, maxOutputTokens: 30, temperature: 0, maxRetries: 0 };
const Person = z.object({ name: z.string().max(12), age: z.number().int().min(0).max(120) });

test('generateText and streamText agree', async () => {
  const whole = await generateText(ask);
  assert.equal(whole.finishReason, 'stop');
  assert.ok(whole.text && whole.usage.outputTokens > 0);
  const stream = streamText(ask);
  assert.equal((await all(stream.textStream)).join(''), whole.text);
  assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
  assert.equal(await stream.finishReason, 'stop');
});

test('length, stop and a seed', async () => {
  assert.equal((await generateText({ ...ask, maxOutputTokens: 3 })).finishReason, 'length');
  const { text } = await generateText(ask);
  const stop = text.slice(6, 9);
  assert.equal((await generateText({ ...ask, stopSequences: [stop] })).text, text.slice(0, text.indexOf(stop)));
  const sample = { ...ask, temperature: 2.5, seed: 5 };
  assert.equal((await generateText(sample)).text, (await generateText(sample)).text);
});

test('generateObject, streamObject and Output.object', async () => {
  const { object } = await generateObject({ ...ask, maxOutputTokens: 500, schema: Person });
  assert.ok(Person.safeParse(object).success);
  const stream = streamObject({ ...ask, maxOutputTokens: 500, schema: Person });
  assert.ok((await all(stream.partialObjectStream)).length > 0);
  assert.deepEqual(await stream.object, object);
  const { output } = await generateText({ ...ask, maxOutputTokens: 500, output: Output.object({ schema: Person }) });
  assert.deepEqual(output, object);
});

test('an object without a schema on the way', async () => {
  const loose = of(SERVER, { supportsStructuredOutputs: false })(MODEL);
  const { object } = await generateObject({ ...ask, model: loose, output: 'no-schema', maxOutputTokens: 400, seed: 1 })
    .catch((error) => ({ object: error.finishReason === 'length' ? {} : undefined }));
  assert.equal(typeof object, 'object');
});

test('completions', async () => {
  const { text } = await generateText({ ...ask, model: of(SERVER).completionModel(MODEL), prompt: STORY });
  assert.ok(text.length > 3);
});

test('each error says what the server said', async () => {
  assert.ok((await generateText({ ...ask, model: of(KEYED, { apiKey: KEY })(MODEL) })).text);
  const cases = [
    [of(KEYED)(MODEL), {}, 401, /API key/],
    [model, { topP: 7 }, 422, /`top_p` must be/],
    [of(FULL)(MODEL), {}, 429, /overloaded/],
    [of(LOADING)(MODEL), {}, 503, /currently loading/],
  ];
  for (const [model, settings, status, message] of cases) {
    await assert.rejects(generateText({ ...ask, ...settings, model }), (error) => {
      assert.ok(APICallError.isInstance(error), String(error));
      assert.equal(error.statusCode, status);
      assert.match(error.message, message);
      assert.equal(error.isRetryable, status === 429 || status === 503);
      return true;
    });
  }
});

test('an error inside a stream', async () => {
  const stream = streamText({
    ...ask,
    maxOutputTokens: 1500,
    providerOptions: { lockstep: { grammar: LONG } },
    headers: { 'x-request-id': 'ai-stream' },
    onError: () => {},
  });
  const parts = stream.fullStream[Symbol.asyncIterator]();
  while ((await parts.next()).value.type !== 'text-delta');
  await cancelled('ai-stream', async () => {
    let part;
    do part = (await parts.next()).value;
    while (part.type !== 'error');
    assert.match(String(part.error.message), /cancelled/);
  });
});
