// @huggingface/inference.

import { InferenceClient } from '@huggingface/inference';
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KEY, KEYED, MODEL, QUESTION, SERVER, all } from './cases.mjs';

const messages = [{ role: 'user', content: QUESTION }];
const ask = { model: MODEL, messages, max_tokens: 30, temperature: 0 };

test('a chat, and its stream', async () => {
  const client = new InferenceClient().endpoint(`${SERVER}/v1`);
  const whole = await client.chatCompletion(ask);
  assert.ok(whole.choices[0].message.content);
  const chunks = await all(client.chatCompletionStream(ask));
  const text = chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? '').join('');
  assert.equal(text, whole.choices[0].message.content);
});

test('a key and a rule', async () => {
  const client = new InferenceClient(KEY).endpoint(`${KEYED}/v1`);
  assert.ok((await client.chatCompletion(ask)).choices.length);
  await assert.rejects(new InferenceClient('wrong').endpoint(`${KEYED}/v1`).chatCompletion(ask), (error) => {
    assert.equal(error.httpResponse.status, 401);
    return true;
  });
  await assert.rejects(client.chatCompletion({ ...ask, top_p: 7 }), (error) => {
    assert.equal(error.httpResponse.status, 422);
    assert.match(error.httpResponse.body.error.message, /`top_p` must be/);
    return true;
  });
});
