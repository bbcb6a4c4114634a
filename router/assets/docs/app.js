// Shows the server's OpenAPI document. Texts are set as text: nothing in the document becomes markup.

const METHODS = ['get', 'post', 'put', 'patch', 'delete'];

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const nameOf = (reference) => reference.split('/').at(-1);

/** A schema in a few words, with links to those that have names. */
function inWords(schema) {
  if (!schema) return ['any value'];
  if (schema.$ref) {
    const name = nameOf(schema.$ref);
    return [element('a', { href: `#${name}` }, name)];
  }
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.flatMap((choice, at) => (at ? [' or ', ...inWords(choice)] : inWords(choice)));
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(', ')];
  const kinds = [schema.type ?? []].flat();
  if (kinds.includes('array')) return ['list of ', ...inWords(schema.items)];
  const rules = ['minimum', 'exclusiveMinimum', 'maximum', 'minItems'].filter((rule) => rule in schema);
  const words = [kinds.length ? kinds.join(' or ') : 'any value', ...rules.map((rule) => `${rule} ${schema[rule]}`)];
  return [words.join(', ')];
}

function row(name, schema, isRequired) {
  const about = [schema.description ?? '', isRequired ? 'Required.' : ''].filter(Boolean).join(' ');
  return element('tr', {}, element('td', {}, name), element('td', {}, ...inWords(schema)), element('td', {}, about));
}

function table(rows) {
  return element('table', {}, element('tbody', {}, ...rows));
}

function fields(schema) {
  const variants = schema.oneOf ?? schema.anyOf;
  if (variants) return variants.map((variant) => (variant.properties ? fields(variant) : element('p', {}, ...inWords(variant)))).flat();
  const rows = Object.entries(schema.properties ?? {});
  return [table(rows.map(([name, field]) => row(name, field, schema.required?.includes(name))))];
}

function content(media) {
  return Object.entries(media ?? {}).map(([type, { schema }]) => {
    const event = schema?.['x-event'];
    const words = event ? ['events: ', ...inWords(event)] : inWords(schema);
    return element('p', {}, element('code', {}, type), ' ', ...words);
  });
}

function operation(path, method, made, document_) {
  const resolve = (value) => (value.$ref ? document_.components[value.$ref.split('/').at(-2)][nameOf(value.$ref)] : value);
  const parts = [];
  const parameters = (made.parameters ?? []).map(resolve);
  if (parameters.length) {
    const rows = parameters.map(({ name, schema, description, required }) => row(name, { ...schema, description }, required));
    parts.push(element('h3', {}, 'Headers and path'), table(rows));
  }
  if (made.requestBody) parts.push(element('h3', {}, 'Body'), ...content(made.requestBody.content));
  for (const [status, answer] of Object.entries(made.responses)) {
    const { description, content: media, headers } = resolve(answer);
    parts.push(element('h3', {}, status), element('p', {}, description), ...content(media));
    if (headers) parts.push(element('p', { class: 'faint' }, Object.keys(headers).join(', ')));
  }
  const title = element('summary', {}, element('b', {}, method.toUpperCase()), path, ' ', element('span', {}, made.summary ?? ''));
  return element('details', { 'data-text': `${method} ${path} ${made.summary}`.toLowerCase() }, title, ...parts);
}

function show(document_) {
  document.getElementById('about').textContent = `${document_.info.version} · ${document_.info.description}`;
  const routes = document.getElementById('routes');
  for (const { name, description } of document_.tags) {
    routes.append(element('h2', {}, description));
    for (const [path, { parameters = [], ...methods }] of Object.entries(document_.paths)) {
      for (const method of METHODS.filter((known) => methods[known]?.tags?.includes(name))) {
        const made = { ...methods[method], parameters: [...parameters, ...(methods[method].parameters ?? [])] };
        routes.append(operation(path, method, made, document_));
      }
    }
  }
  const schemas = document.getElementById('schemas');
  schemas.append(element('h2', {}, 'Schemas'));
  for (const [name, schema] of Object.entries(document_.components.schemas)) {
    const about = schema.description ? [element('p', {}, schema.description)] : [];
    schemas.append(element('details', { id: name }, element('summary', {}, name), ...about, ...fields(schema)));
  }
}

function openTarget() {
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.setAttribute('open', '');
}

document.getElementById('filter').addEventListener('input', ({ target }) => {
  for (const route of document.querySelectorAll('#routes details')) {
    route.hidden = !route.dataset.text.includes(target.value.trim().toLowerCase());
  }
});
addEventListener('hashchange', openTarget);

try {
  const answer = await fetch(new URL('api-doc/openapi.json', document.baseURI));
  show(await answer.json());
  openTarget();
} catch (error) {
  document.getElementById('about').textContent = `The document cannot be read: ${error.message}`;
}
