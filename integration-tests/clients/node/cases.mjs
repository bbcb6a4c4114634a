// What the tests of several clients ask for, and of which servers.

export const { SERVER, KEYED, FULL, LOADING, KEY, SHARD } = process.env;
export const MODEL = 'lockstep/demo';
export const STORY = 'Once upon a time';
export const QUESTION = 'What is the capital of France?';
// A text of one length, whatever the model: long enough to be interrupted.
export const LONG = { type: 'regex', value: '[a-z ]{1500}' };

/** All that an async iterable gives. */
export async function all(iterable) {
  const items = [];
  for await (const item of iterable) items.push(item);
  return items;
}

/** Cancels a running request, which ends it with an error, and does `work` while the server's shard stands still. */
export async function cancelled(id, work) {
  process.kill(Number(SHARD), 'SIGSTOP');
  try {
    const answer = await fetch(`${SERVER}/requests/${id}`, { method: 'DELETE' });
    if (!answer.ok) throw new Error(await answer.text());
    await work();
  } finally {
    process.kill(Number(SHARD), 'SIGCONT');
  }
}
