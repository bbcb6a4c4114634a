// An answer on the page: its tokens, what each could have been, and how long it all took.

/** Makes an element: attributes, then children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && name !== 'role') element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const details = new WeakMap();

/** White space made visible. */
const visible = (text) => (text === '' ? '(nothing)' : text.replaceAll('\n', '⏎').replaceAll('\t', '⇥').replace(/^ | $/g, '␣'));

const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return share >= 99.95 ? '100 %' : share < 0.1 ? '< 0.1 %' : `${share.toFixed(1)} %`;
};

const decimal = (value) => (Math.abs(value) < 0.0005 ? '0' : value.toFixed(3).replace('-', '−'));

const isKnown = (logprob) => Number.isFinite(logprob);

/** One choice of an answer: a run of tokens that is one stop for Tab and many for the arrow keys. */
export class TokenFlow {
  constructor(label) {
    this.element = make('div', { className: 'flow', role: 'group', 'aria-label': label });
    this.text = '';
    this.pending = [];
  }

  /** Appends what an event brought; `gap` is the time since the one before, in milliseconds. */
  add({ text, tokens }, gap) {
    this.text += text;
    const all = this.pending.concat(tokens);
    const visibleText = tokens.filter((token) => !token.special).map((token) => token.text).join('');
    if (tokens.length > 0 && visibleText === text && this.pending.length === 0) {
      for (const token of tokens) this.append(token.text, [token], gap);
    } else if (text === '') {
      // Part of a character, or text held back because it may be the start of a stop text.
      this.pending = all;
    } else {
      this.append(text, all, gap);
      this.pending = [];
    }
  }

  append(text, tokens, gap) {
    const first = tokens[0];
    const span = make('span', { className: 'token', tabIndex: this.element.childElementCount ? -1 : 0 }, text);
    if (first && isKnown(first.logprob)) {
      // How unlikely the least likely of them was.
      const logprob = Math.min(...tokens.map((token) => token.logprob));
      span.style.setProperty('--doubt', (1 - Math.exp(logprob)).toFixed(3));
    }
    if (first?.special) span.classList.add('special');
    if (first?.prompt) span.classList.add('of-prompt');
    details.set(span, { text, tokens, gap });
    this.element.append(span);
  }

  /** Tool calls have no tokens of their own on the wire. */
  addCall({ index = 0, function: called = {} }) {
    const name = `call-${index}`;
    let line = this.element.querySelector(`[data-call="${name}"]`);
    if (!line) {
      line = make('code', { className: 'call' });
      line.dataset.call = name;
      this.element.append(line);
    }
    line.append(called.name ? `${called.name} ` : '', called.arguments ?? '');
  }
}

/** Arrow keys walk through the tokens of a flow. */
export function walk(event) {
  const token = event.target.closest?.('.token');
  if (!token) return;
  const flow = token.parentElement;
  const tokens = flow.querySelectorAll('.token');
  const target = {
    ArrowRight: nextOf(token, 'nextElementSibling'),
    ArrowLeft: nextOf(token, 'previousElementSibling'),
    Home: tokens[0],
    End: tokens[tokens.length - 1],
  }[event.key];
  if (!target) return;
  event.preventDefault();
  token.tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
}

function nextOf(token, direction) {
  let next = token[direction];
  while (next && !next.classList.contains('token')) next = next[direction];
  return next;
}

/** What is shown of the token under the pointer or the focus. */
export class Tip {
  constructor(element) {
    this.element = element;
    this.target = null;
  }

  show(span) {
    const known = details.get(span);
    if (!known) return;
    this.hide();
    this.target = span;
    span.setAttribute('aria-describedby', this.element.id);
    span.classList.add('shown');
    this.element.replaceChildren(...known.tokens.flatMap(describe), timing(known));
    this.element.hidden = false;
    this.place(span);
  }

  hide() {
    this.target?.removeAttribute('aria-describedby');
    this.target?.classList.remove('shown');
    this.target = null;
    this.element.hidden = true;
  }

  place(span) {
    // The first line of a token that is broken over two.
    const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.element;
    const left = Math.max(8, Math.min(box.left, window.innerWidth - width - 8));
    const below = box.bottom + 6;
    const top = below + height > window.innerHeight - 8 ? Math.max(8, box.top - height - 6) : below;
    this.element.style.left = `${left}px`;
    this.element.style.top = `${top}px`;
  }
}

function describe(token) {
  const id = token.id === undefined ? '' : `token ${token.id}`;
  const head = make('p', { className: 'tip-head' },
    make('code', {}, visible(token.text)), make('span', { className: 'faint' }, id));
  const parts = [head];
  if (isKnown(token.logprob)) {
    parts.push(make('p', { className: 'tip-probability' }, `${percent(token.logprob)} likely`,
      make('span', { className: 'faint' }, `log-probability ${decimal(token.logprob)}`)));
  }
  if (token.top.length) {
    const same = (rival) => (token.id === undefined ? rival.text === token.text : rival.id === token.id);
    parts.push(make('ol', { className: 'rivals', 'aria-label': 'Likeliest tokens' }, ...token.top.map((rival) => {
      const row = make('li', { className: same(rival) ? 'chosen' : '' },
        make('code', {}, visible(rival.text)), make('b', {}, percent(rival.logprob)));
      row.style.setProperty('--share', Math.exp(rival.logprob).toFixed(4));
      return row;
    })));
  }
  return parts;
}

function timing({ tokens, gap }) {
  const plain = tokens.length ? '' : 'No log-probability is known. ';
  const time = gap === undefined ? '' : `Came ${milliseconds(gap)} after the one before.`;
  return make('p', { className: 'faint tip-time' }, plain + time);
}

export const milliseconds = (value) => (value >= 1000 ? `${(value / 1000).toFixed(2)} s` : `${value.toFixed(value < 10 ? 1 : 0)} ms`);

/** Clocks one answer. */
export class Stopwatch {
  constructor() {
    this.begun = performance.now();
    this.first = undefined;
    this.last = undefined;
    this.gaps = [];
    this.tokens = 0;
  }

  /** Tokens came; returns the milliseconds since the ones before. */
  mark(count) {
    const now = performance.now();
    this.tokens += count;
    const gap = this.last === undefined ? undefined : now - this.last;
    if (gap === undefined) this.first = now - this.begun;
    else this.gaps.push(gap);
    this.last = now;
    return gap;
  }

  /** The numbers so far, as [label, value] pairs. */
  numbers({ usage = {}, seed, finish, streamed }) {
    const generated = usage.generated ?? this.tokens;
    const pairs = [];
    if (usage.prompt !== undefined) {
      pairs.push(['prompt', `${usage.prompt} tokens${usage.cached ? `, ${usage.cached} cached` : ''}`]);
    }
    pairs.push(['answer', `${generated} tokens`]);
    if (this.first !== undefined) pairs.push([streamed ? 'first token' : 'whole answer', milliseconds(this.first)]);
    if (streamed && this.gaps.length) {
      const sorted = this.gaps.toSorted((a, b) => a - b);
      const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
      const seconds = (this.last - this.begun - this.first) / 1000;
      if (seconds > 0) pairs.push(['speed', `${((this.tokens - 1) / seconds).toFixed(1)} tokens/s`]);
      pairs.push(['between tokens', `${milliseconds(at(0.5))} median, ${milliseconds(at(0.99))} p99`]);
    }
    if (seed !== undefined) pairs.push(['seed', String(seed)]);
    if (finish) pairs.push(['ended by', ENDS[finish] ?? finish]);
    return pairs;
  }
}

const ENDS = {
  length: 'length limit',
  eos_token: 'end of text',
  stop_sequence: 'stop text',
  stop: 'end or stop text',
  tool_calls: 'tool call',
  stopped: 'you',
  failed: 'an error',
};
