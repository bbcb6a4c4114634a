// What a person can set, and how each dialect spells it.

const number = (name, label, hint, more) => ({ name, label, hint, kind: 'number', ...more });

// `chat` and `complete` name the field in that dialect where it is not `name`; null means it has none.
export const GROUPS = [
  {
    title: 'Length',
    open: true,
    fields: [
      number('max_tokens', 'Most tokens', 'Where the answer ends at the latest', {
        initial: '200', step: 1, min: 1, complete: 'max_new_tokens',
      }),
      {
        name: 'stop', label: 'Stop at', kind: 'lines',
        hint: 'One text a line; \\n stands for a line break',
      },
      { name: 'ignore_eos', label: 'Go on past the end-of-text token', kind: 'check' },
    ],
  },
  {
    title: 'Sampling',
    open: true,
    fields: [
      number('temperature', 'Temperature', '0 in a chat is greedy', { step: 0.1, min: 0 }),
      number('top_p', 'Top p', 'Keep the likeliest tokens that reach this share', { step: 0.05, min: 0, max: 1 }),
      number('top_k', 'Top k', 'Keep this many of the likeliest tokens', { step: 1, min: 0 }),
      number('min_p', 'Min p', 'Drop what is less likely than this share of the best', { step: 0.01, min: 0, max: 1 }),
      number('typical_p', 'Typical p', 'Keep tokens of typical surprise', { step: 0.05, min: 0, max: 1 }),
      number('seed', 'Seed', 'The same seed gives the same answer', { step: 1, min: 0 }),
      {
        name: 'do_sample', label: 'Sample', kind: 'choice', chat: null,
        options: [['', 'as needed'], ['true', 'yes'], ['false', 'no, greedy']],
      },
    ],
  },
  {
    title: 'Penalties and bias',
    fields: [
      number('repetition_penalty', 'Repetition penalty', '1 is none', { step: 0.05, min: 0 }),
      number('frequency_penalty', 'Frequency penalty', '0 is none', { step: 0.1 }),
      number('presence_penalty', 'Presence penalty', '0 is none', { step: 0.1 }),
      { name: 'logit_bias', label: 'Logit bias', kind: 'pairs', hint: 'One "token id: bias" a line' },
    ],
  },
  {
    title: 'Form of the answer',
    fields: [
      {
        name: 'shape', label: 'Must match', kind: 'choice',
        options: [['', 'anything'], ['json', 'a JSON Schema'], ['regex', 'a regular expression']],
      },
      { name: 'shape_value', label: 'Schema or expression', kind: 'text', unsent: true },
      { name: 'tools', label: 'Tools', kind: 'json', hint: 'A JSON list', complete: null },
      {
        name: 'tool_choice', label: 'Tool choice', kind: 'choice', complete: null,
        options: [['', 'default'], ['auto', 'auto'], ['none', 'none'], ['required', 'required']],
      },
      { name: 'chat_template_kwargs', label: 'Template variables', kind: 'json', hint: 'A JSON object', complete: null },
    ],
  },
  {
    title: 'Request',
    fields: [
      number('top', 'Alternatives of each token', '0 asks for none', {
        initial: '5', step: 1, min: 0, chat: 'top_logprobs', complete: 'top_n_tokens',
      }),
      { name: 'streamed', label: 'Stream', kind: 'check', initial: true, unsent: true },
      number('best_of', 'Best of', 'Answers to choose the best of; not while streaming', { step: 1, min: 1, chat: null }),
      { name: 'decoder_input_details', label: "Prompt's log-probabilities (not while streaming)", kind: 'check', chat: null },
      { name: 'return_full_text', label: 'Repeat the prompt in the answer', kind: 'check', chat: null },
      number('truncate', 'Truncate', 'Keep only the last tokens of the prompt', { step: 1, min: 1, chat: null }),
      { name: 'watermark', label: 'Watermark', kind: 'check', chat: null },
      { name: 'adapter_id', label: 'Adapter', kind: 'word' },
      { name: 'cache', label: 'May be answered from the response cache', kind: 'check', initial: true, unsent: true },
      { name: 'wait', label: 'Wait for a model that is loading', kind: 'check', unsent: true },
      { name: 'extra', label: 'Other fields', kind: 'json', hint: 'A JSON object, merged into the request', unsent: true },
    ],
  },
];

export const FIELDS = GROUPS.flatMap((group) => group.fields);

/** A setting cannot be read; the message is for people. */
export class SettingError extends Error {
  constructor(field, message) {
    super(`${field.label}: ${message}`);
    this.field = field.name;
  }
}

/** The value of a setting as JSON, or undefined where it is left alone. */
function read(field, raw) {
  switch (field.kind) {
    case 'check':
      return raw ? true : undefined;
    case 'number':
      if (raw === '') return undefined;
      if (!Number.isFinite(Number(raw))) throw new SettingError(field, 'not a number');
      // A seed may need more digits than a double has.
      return /^\d{16,}$/.test(raw) ? JSON.rawJSON?.(raw) ?? Number(raw) : Number(raw);
    case 'lines': {
      const lines = raw.split('\n').filter((line) => line !== '');
      return lines.length ? lines.map((line) => line.replaceAll('\\n', '\n').replaceAll('\\t', '\t')) : undefined;
    }
    case 'pairs': {
      const lines = raw.split('\n').filter((line) => line.trim() !== '');
      if (!lines.length) return undefined;
      return Object.fromEntries(lines.map((line) => {
        const found = line.match(/^\s*"?(\d+)"?\s*[:=\s]\s*([-+]?[\d.]+)\s*,?\s*$/);
        if (!found) throw new SettingError(field, `"${line}" is not "token id: bias"`);
        return [found[1], Number(found[2])];
      }));
    }
    case 'json':
      return raw.trim() === '' ? undefined : parsed(field, raw);
    case 'choice':
      return raw === '' ? undefined : raw === 'true' ? true : raw === 'false' ? false : raw;
    default:
      return raw === '' ? undefined : raw;
  }
}

function parsed(field, raw) {
  try {
    return JSON.parse(raw);
  } catch {
    throw new SettingError(field, 'not valid JSON');
  }
}

/**
 * The request that these settings describe.
 * @param {'chat'|'complete'} mode which dialect
 * @param {Record<string, string|boolean>} settings raw values of the form
 * @param {{messages?: object[], text?: string, model?: string}} content what is asked
 * @returns {{path: string, headers: Record<string, string>, body: object, streamed: boolean}}
 */
export function request(mode, settings, content) {
  const given = {};
  for (const field of FIELDS) {
    if (field.unsent || field.name === 'shape' || field[mode] === null) continue;
    const value = read(field, settings[field.name]);
    if (value !== undefined) given[field[mode] ?? field.name] = value;
  }
  const shape = shapeOf(settings);
  const extra = read(FIELDS.find((field) => field.name === 'extra'), settings.extra) ?? {};
  const headers = {};
  if (!settings.cache) headers['x-use-cache'] = 'false';
  if (settings.wait) headers['x-wait-for-model'] = 'true';
  const { streamed } = settings;
  if (mode === 'chat') {
    if (given.top_logprobs === 0) delete given.top_logprobs;
    if (shape) {
      given.response_format = shape.type === 'json'
        ? { type: 'json_schema', json_schema: { name: 'answer', schema: shape.value } }
        : shape;
    }
    const stream = streamed ? { stream: true, stream_options: { include_usage: true } } : {};
    const body = { model: content.model, messages: content.messages, ...stream, logprobs: true, ...given, ...extra };
    return { path: 'v1/chat/completions', headers, body, streamed };
  }
  if (given.top_n_tokens === 0) delete given.top_n_tokens;
  if (shape) given.grammar = shape;
  const body = { inputs: content.text, parameters: { ...given, details: true, ...extra } };
  return { path: streamed ? 'generate_stream' : 'generate', headers, body, streamed };
}

function shapeOf({ shape, shape_value: value }) {
  const field = FIELDS.find((one) => one.name === 'shape_value');
  if (!shape) return null;
  if (value.trim() === '') throw new SettingError(field, 'empty');
  return { type: shape, value: shape === 'json' ? parsed(field, value) : value };
}

/** The request as a command to paste; a key is left to the shell. */
export function curl({ path, headers, body }, base, hasKey) {
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const lines = [`curl -N ${quote(new URL(path, base).href)}`, "-H 'content-type: application/json'"];
  for (const [name, value] of Object.entries(headers)) lines.push(`-H ${quote(`${name}: ${value}`)}`);
  if (hasKey) lines.push('-H "authorization: Bearer $API_KEY"');
  lines.push(`-d ${quote(JSON.stringify(body))}`);
  return lines.join(' \\\n  ');
}
