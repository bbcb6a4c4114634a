// Calls of tools, with openai and with the Vercel AI SDK.

import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, stepCountIs, streamText, tool } from 'ai';
import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';
import { z } from 'zod';
import { MODEL, QUESTION, SERVER, all } from './cases.mjs';

const City = z.object({ city: z.string().max(12) });

test('openai: a call, whole and in deltas', async () => {
  const client = new OpenAI({ baseURL: `${SERVER}/v1`, apiKey: 'none', maxRetries: 0 });
  const parameters = {
    type: 'object',
    properties: { city: { type: 'string', maxLength: 12 } },
    required: ['city'],
    additionalProperties: false,
  };
  const ask = {
    model: MODEL,
    messages: [{ role: 'user', content: QUESTION }],
    tools: [{ type: 'function', function: { name: 'weather', parameters } }],
    tool_choice: 'required',
    max_tokens: 500,
    temperature: 0,
  };
  const choice = (await client.chat.completions.create(ask)).choices[0];
  assert.equal(choice.finish_reason, 'tool_calls');
  const [call] = choice.message.tool_calls;
  assert.equal(call.function.name, 'weather');
  City.parse(JSON.parse(call.function.arguments));
  const stream = client.chat.completions.stream(ask);
  const final = (await stream.finalChatCompletion()).choices[0];
  assert.equal(final.message.tool_calls[0].function.arguments, call.function.arguments);
  assert.equal(final.message.tool_calls[0].function.name, 'weather');
});

const model = createOpenAICompatible({ name: 'lockstep', baseURL: `${SERVER}/v1` })(MODEL);
const weather = tool({ description: 'The weather of a city', inputSchema: City, execute: async () => 'sunny' });
const ask = { model, prompt: QUESTION, tools: { weather }, maxOutputTokens: 500, temperature: 0, maxRetries: 0 };

test('AI SDK: a call is carried out', async () => {
  const { toolCalls, toolResults, finishReason } = await generateText({ ...ask, toolChoice: 'required' });
  assert.equal(finishReason, 'tool-calls');
  assert.equal(toolCalls[0].toolName, 'weather');
  assert.ok(City.safeParse(toolCalls[0].input).success);
  assert.equal(toolResults[0].output, 'sunny');
});

test('AI SDK: a call streams', async () => {
  const stream = streamText({ ...ask, toolChoice: { type: 'tool', toolName: 'weather' } });
  const parts = await all(stream.fullStream);
  assert.ok(parts.some((part) => part.type === 'tool-input-delta'));
  assert.equal((await stream.toolCalls)[0].toolName, 'weather');
});

test('AI SDK: a conversation goes on after a call', async () => {
  const { steps } = await generateText({
    ...ask,
    toolChoice: 'required',
    stopWhen: stepCountIs(2),
    prepareStep: ({ stepNumber }) => (stepNumber > 0 ? { toolChoice: 'none' } : {}),
  });
  assert.equal(steps.length, 2);
  assert.ok(steps[1].text);
});
