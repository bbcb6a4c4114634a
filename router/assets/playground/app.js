// The page: conversation, completion, settings.

import { ask, fetchJson } from './client.js';
import { FIELDS, GROUPS, SettingError, curl, request } from './parameters.js';
import { Stopwatch, Tip, TokenFlow, make, walk } from './tokens.js';

const at = (id) => document.getElementById(id);
const SETTINGS_KEY = 'lockstep-playground';

const state = {
  mode: 'chat',
  model: '',
  /** {role, content} with `view` (its element) for what was asked and answered. */
  turns: [],
  completion: null,
  running: null,
};
const tip = new Tip(at('tip'));

// Settings

function control(field) {
  const id = `field-${field.name}`;
  const described = field.hint ? { 'aria-describedby': `${id}-hint` } : {};
  const hint = field.hint ? [make('small', { id: `${id}-hint` }, field.hint)] : [];
  const common = { id, name: field.name, ...described };
  switch (field.kind) {
    case 'check':
      return [make('label', { className: 'check' }, make('input', { type: 'checkbox', ...common }), ` ${field.label}`)];
    case 'choice': {
      const options = field.options.map(([value, label]) => make('option', { value }, label));
      return [make('label', { htmlFor: id }, field.label), make('select', common, ...options), ...hint];
    }
    case 'number': {
      const limits = Object.fromEntries(['min', 'max', 'step'].filter((name) => name in field).map((name) => [name, field[name]]));
      const input = make('input', { type: 'text', inputMode: 'decimal', autocomplete: 'off', placeholder: 'default', ...common });
      input.addEventListener('keydown', (event) => nudge(event, limits));
      return [make('label', { htmlFor: id }, field.label), input, ...hint];
    }
    case 'word':
      return [make('label', { htmlFor: id }, field.label), make('input', { type: 'text', autocomplete: 'off', ...common })];
    default:
      return [make('label', { htmlFor: id }, field.label), make('textarea', { rows: 2, spellcheck: false, ...common }), ...hint];
  }
}

/** Up and down change a number by its step, as in a number field, which would not take every number. */
function nudge(event, { step = 1, min = -Infinity, max = Infinity }) {
  const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  if (!direction) return;
  event.preventDefault();
  const value = Math.min(max, Math.max(min, Number(event.target.value || 0) + direction * step));
  event.target.value = String(Number(value.toFixed(6)));
  event.target.dispatchEvent(new Event('input', { bubbles: true }));
}

function buildSettings() {
  const groups = GROUPS.map(({ title, open = false, fields }) => {
    const rows = fields.map((field) => {
      const row = make('div', { className: `field ${field.kind}` }, ...control(field));
      row.dataset.modes = ['chat', 'complete'].filter((mode) => field[mode] !== null).join(' ');
      return row;
    });
    return make('details', { className: 'group', open }, make('summary', {}, title), ...rows);
  });
  at('parameters').replaceChildren(...groups);
}

const input = (name) => at(`field-${name}`);

function settings() {
  return Object.fromEntries(FIELDS.map(({ name, kind }) => [name, kind === 'check' ? input(name).checked : input(name).value]));
}

function setSettings(values) {
  for (const { name, kind, initial } of FIELDS) {
    const value = values[name] ?? initial;
    if (kind === 'check') input(name).checked = value === true;
    else input(name).value = value ?? '';
  }
}

function restoreSettings() {
  try {
    setSettings(JSON.parse(localStorage.getItem(SETTINGS_KEY)) ?? {});
    at('key').value = sessionStorage.getItem(SETTINGS_KEY) ?? '';
  } catch {
    // Storage that is forbidden or broken is no reason not to start.
    setSettings({});
  }
}

function onSettings() {
  try {
    localStorage.setItem(SETTINGS_KEY, JSON.stringify(settings()));
    sessionStorage.setItem(SETTINGS_KEY, key());
  } catch {
    // The settings hold for this visit then.
  }
  for (const field of FIELDS) {
    const initial = field.initial ?? (field.kind === 'check' ? false : '');
    const value = settings()[field.name];
    input(field.name).closest('.field').classList.toggle('changed', value !== initial);
  }
  for (const name of ['shape_value']) input(name).closest('.field').hidden = input('shape').value === '';
  showCurl();
}

const key = () => at('key').value.trim();

// What is asked

function messages(turns = state.turns) {
  const system = at('system').value.trim();
  const said = turns.map(({ role, content }) => ({ role, content }));
  return system ? [{ role: 'system', content: system }, ...said] : said;
}

function content() {
  if (state.mode === 'complete') return { text: at('prompt').value };
  const draft = at('message').value;
  const pending = draft || !state.turns.length ? [{ role: 'user', content: draft }] : [];
  const turns = state.turns.filter((turn) => turn.content !== '');
  const asked = turns.at(-1)?.role === 'assistant' && !draft ? turns.slice(0, -1) : turns.concat(pending);
  return { model: state.model, messages: messages(asked) };
}

function showCurl() {
  try {
    at('curl').textContent = curl(request(state.mode, settings(), content()), document.baseURI, key() !== '');
  } catch (error) {
    at('curl').textContent = error.message;
  }
}

// Running

/** One request and its answer, which goes into `view`. */
async function run(view, asked) {
  stop();
  complain(null);
  let wanted;
  try {
    wanted = request(state.mode, settings(), asked);
  } catch (error) {
    view.remove();
    refuse(error);
    return '';
  }
  const abort = new AbortController();
  const running = { abort };
  state.running = running;
  busy(true);
  const answer = new Answer(view, wanted.streamed);
  try {
    for await (const event of ask(wanted, key(), abort.signal)) answer.on(event);
    answer.end();
  } catch (error) {
    answer.end(error.name === 'AbortError' ? 'stopped' : 'failed');
    if (error.name !== 'AbortError') refuse(error);
    if (answer.isEmpty) view.remove();
  }
  if (state.running === running) {
    state.running = null;
    busy(false);
  }
  return answer.text;
}

class Answer {
  constructor(view, streamed) {
    this.body = view.querySelector('.body');
    this.numbers = view.querySelector('.numbers');
    this.body.replaceChildren();
    this.numbers.replaceChildren();
    view.classList.add('running');
    this.view = view;
    this.flows = new Map();
    this.watch = new Stopwatch();
    this.known = { streamed };
  }

  get text() {
    return this.flows.get(0)?.text ?? '';
  }

  get isEmpty() {
    return this.flows.size === 0;
  }

  flow(index) {
    let flow = this.flows.get(index);
    if (!flow) {
      flow = new TokenFlow(index ? `Answer ${index + 1}, token by token` : 'Answer, token by token');
      this.flows.set(index, flow);
      this.body.append(flow.element);
    }
    return flow;
  }

  on(event) {
    const { scrollTop, scrollHeight, clientHeight } = at('scroll');
    const follows = scrollHeight - scrollTop - clientHeight < 40;
    if (event.text !== undefined) {
      const count = event.tokens.filter((token) => !token.prompt).length || 1;
      this.flow(event.index).add(event, this.watch.mark(count));
    }
    if (event.call) this.flow(event.index).addCall(event.call);
    Object.assign(this.known, event.usage && { usage: event.usage }, event.seed !== undefined && { seed: event.seed });
    if (event.finish) this.known.finish = event.finish;
    this.show();
    if (follows) at('scroll').scrollTop = at('scroll').scrollHeight;
  }

  end(finish) {
    if (finish) this.known.finish = finish;
    this.view.classList.remove('running');
    this.show();
    at('status').textContent = finish === 'stopped' ? 'Stopped.' : finish ? '' : `Answer complete, ${this.watch.tokens} tokens.`;
  }

  show() {
    const pairs = this.watch.numbers(this.known);
    this.numbers.replaceChildren(...pairs.flatMap(([label, value]) => [make('div', {}, make('dt', {}, label), make('dd', {}, value))]));
  }
}

function stop() {
  state.running?.abort.abort();
}

function busy(isBusy) {
  at('send').hidden = isBusy;
  at('stop').hidden = !isBusy;
  if (!isBusy) showCurl();
}

function complain(message) {
  at('alert').hidden = !message;
  at('alert').textContent = message ?? '';
}

function refuse(error) {
  complain(error.message);
  if (error.status === 401) {
    askForKey();
  } else if (error instanceof SettingError) {
    openPanel(true);
    const field = input(error.field);
    field.closest('details').open = true;
    field.focus();
  }
}

function askForKey() {
  openPanel(true);
  at('key-field').hidden = false;
  at('key').focus();
}

// Chat

function turnView(turn) {
  const isUser = turn.role === 'user';
  const button = (text, action) => {
    const element = make('button', { type: 'button', className: 'quiet' }, text);
    element.addEventListener('click', action);
    return element;
  };
  const actions = isUser
    ? [button('Edit', () => edit(turn))]
    : [button('Retry', () => retry(turn)), button('Copy', () => copy(turn.content))];
  const body = make('div', { className: 'body' }, isUser ? turn.content : '');
  const parts = [make('p', { className: 'who' }, isUser ? 'You' : 'Model'), body];
  if (!isUser) parts.push(make('dl', { className: 'numbers' }));
  turn.view = make('li', { className: `turn ${turn.role}` }, ...parts, make('p', { className: 'actions' }, ...actions));
  return turn.view;
}

function addTurn(role, text) {
  const turn = { role, content: text };
  state.turns.push(turn);
  at('turns').append(turnView(turn));
  at('empty').hidden = true;
  return turn;
}

/** Forgets a turn and all after it. */
function cutFrom(turn) {
  const place = state.turns.indexOf(turn);
  if (place < 0) return;
  for (const gone of state.turns.splice(place)) gone.view.remove();
  at('empty').hidden = state.turns.length > 0;
}

async function answerTurns() {
  const asked = { model: state.model, messages: messages() };
  const turn = addTurn('assistant', '');
  at('scroll').scrollTop = at('scroll').scrollHeight;
  turn.content = await run(turn.view, asked);
  if (!turn.view.isConnected) state.turns = state.turns.filter((one) => one !== turn);
  showCurl();
}

function sendMessage() {
  const text = at('message').value;
  if (text.trim() === '') {
    // After an error the question is there without an answer.
    if (state.turns.at(-1)?.role === 'user') answerTurns();
    return;
  }
  at('message').value = '';
  fit(at('message'));
  stop();
  addTurn('user', text);
  answerTurns();
}

function retry(turn) {
  stop();
  cutFrom(turn);
  answerTurns();
}

function edit(turn) {
  const body = turn.view.querySelector('.body');
  const area = make('textarea', { value: turn.content, 'aria-label': 'Edit message' });
  const save = make('button', { type: 'submit', className: 'primary' }, 'Send again');
  const cancel = make('button', { type: 'button' }, 'Cancel');
  const form = make('form', { className: 'edit' }, area, make('p', {}, save, cancel));
  const close = () => {
    body.replaceChildren(turn.content);
    turn.view.classList.remove('editing');
  };
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    stop();
    cutFrom(turn);
    addTurn('user', area.value);
    answerTurns();
  });
  cancel.addEventListener('click', close);
  area.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') close();
    else if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
    if (event.key === 'Escape') event.stopPropagation();
  });
  area.addEventListener('input', () => fit(area));
  turn.view.classList.add('editing');
  body.replaceChildren(form);
  fit(area);
  area.focus();
}

// Completion

async function complete() {
  const view = make('div', { className: 'turn assistant' },
    make('div', { className: 'body' }), make('dl', { className: 'numbers' }), make('p', { className: 'actions' }));
  const text = at('prompt').value;
  at('completion').replaceChildren(view);
  const answer = await run(view, { text });
  if (!view.isConnected || answer === '') return;
  const add = make('button', { type: 'button', className: 'quiet' }, 'Add to the text');
  add.addEventListener('click', () => {
    at('prompt').value = text + answer;
    at('completion').replaceChildren();
    fit(at('prompt'));
    at('prompt').focus();
    showCurl();
  });
  const again = make('button', { type: 'button', className: 'quiet' }, 'Copy');
  again.addEventListener('click', () => copy(answer));
  view.querySelector('.actions').append(add, again);
}

// The page

function setMode(mode) {
  stop();
  state.mode = mode;
  complain(null);
  at('chat').hidden = mode !== 'chat';
  at('complete').hidden = mode !== 'complete';
  at('message').hidden = mode !== 'chat';
  at('clear').hidden = mode !== 'chat';
  at('send').textContent = mode === 'chat' ? 'Send' : 'Continue';
  at('keys').textContent = mode === 'chat'
    ? 'Enter sends, Shift+Enter breaks the line, Escape stops.'
    : 'Ctrl+Enter continues the text, Escape stops.';
  for (const row of document.querySelectorAll('[data-modes]')) row.classList.toggle('absent', !row.dataset.modes.includes(mode));
  showCurl();
}

function openPanel(isOpen) {
  document.body.classList.toggle('panel-closed', !isOpen);
  at('toggle-panel').setAttribute('aria-expanded', String(isOpen));
}

/** A text area grows with its text. */
function fit(area) {
  area.style.height = 'auto';
  area.style.height = `${Math.min(area.scrollHeight + 2, window.innerHeight * 0.4)}px`;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    at('status').textContent = 'Copied.';
    return true;
  } catch {
    // Without a secure context there is no clipboard.
    complain('The browser does not let this page copy. Select the text instead.');
    return false;
  }
}

async function greet() {
  try {
    const [info, list] = await Promise.all([fetchJson('info', key()), fetchJson('v1/models', key())]);
    state.model = list.data?.[0]?.id ?? info.model_id;
    const limits = `${info.max_total_tokens} tokens of context`;
    at('model').replaceChildren(make('b', {}, state.model), make('span', { className: 'faint' }, ` ${limits}`));
    if (at('alert').textContent.includes('API key')) complain(null);
  } catch (error) {
    at('model').replaceChildren(make('span', { className: 'faint' }, error.status === 401 ? 'locked' : 'not reached'));
    refuse(error);
  }
  showCurl();
}

function listen() {
  at('composer').addEventListener('submit', (event) => {
    event.preventDefault();
    if (state.mode === 'chat') sendMessage();
    else complete();
  });
  at('message').addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    sendMessage();
  });
  at('prompt').addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) complete();
  });
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape') return;
    if (tip.target) tip.hide();
    else stop();
  });
  for (const area of document.querySelectorAll('#message, #system, #prompt')) {
    area.addEventListener('input', () => {
      fit(area);
      showCurl();
    });
  }
  at('stop').addEventListener('click', stop);
  at('clear').addEventListener('click', () => {
    stop();
    if (state.turns.length) cutFrom(state.turns[0]);
    complain(null);
    at('message').focus();
  });
  at('settings').addEventListener('input', onSettings);
  at('settings').addEventListener('submit', (event) => event.preventDefault());
  at('key').addEventListener('change', greet);
  at('show-key').addEventListener('click', askForKey);
  at('reset').addEventListener('click', () => {
    setSettings({});
    onSettings();
  });
  at('coloured').addEventListener('change', (event) => document.body.classList.toggle('plain', !event.target.checked));
  at('toggle-panel').addEventListener('click', () => openPanel(document.body.classList.contains('panel-closed')));
  at('copy-curl').addEventListener('click', async () => {
    if (await copy(at('curl').textContent)) {
      at('copy-curl').textContent = 'Copied';
      setTimeout(() => { at('copy-curl').textContent = 'Copy'; }, 1500);
    }
  });
  for (const radio of document.querySelectorAll('[name=mode]')) {
    radio.addEventListener('change', () => setMode(radio.value));
  }
  const tokenOf = (event) => event.target.closest?.('.token');
  const main = document.querySelector('main');
  main.addEventListener('pointerover', (event) => {
    const token = tokenOf(event);
    if (token) tip.show(token);
    else tip.hide();
  });
  main.addEventListener('pointerleave', () => tip.hide());
  main.addEventListener('focusin', (event) => tokenOf(event) && tip.show(tokenOf(event)));
  main.addEventListener('focusout', () => tip.hide());
  main.addEventListener('keydown', walk);
  at('scroll').addEventListener('scroll', () => tip.hide(), { passive: true });
}

buildSettings();
restoreSettings();
listen();
openPanel(window.matchMedia('(min-width: 56rem)').matches);
onSettings();
setMode(document.querySelector('[name=mode]:checked').value);
greet();
