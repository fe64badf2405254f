"use strict";
// A small reader of /openapi.json: no page of somebody else's is loaded.
function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function table(heads, rows) {
  const line = (kind, cells) => element("tr", "", ...cells.map((cell) => element(kind, String(cell ?? ""))));
  return element("table", "", line("th", heads), ...rows.map((row) => line("td", row)));
}

function rule(schema) {
  const parts = [schema.type];
  if (schema.enum) parts.push(`one of ${schema.enum.join(", ")}`);
  if (schema.minimum !== undefined) parts.push(`${schema.minimum} to ${schema.maximum}`);
  if (schema.default !== undefined) parts.push(`default ${schema.default}`);
  if (schema.format) parts.push(schema.format);
  if (schema.description) parts.push(schema.description);
  return parts.filter(Boolean).join("; ");
}

function fields(content) {
  const { schema } = content;
  const rows = Object.entries(schema.properties ?? {}).map(([name, facts]) =>
    [name, (schema.required ?? []).includes(name) ? "required" : "", rule(facts)]);
  return rows.length ? table(["field", "", ""], rows) : element("p", "");
}

function operation(path, method, facts) {
  const parts = [element("h2", `${method.toUpperCase()} ${path}`), element("p", facts.description ?? facts.summary)];
  for (const [kind, content] of Object.entries(facts.requestBody?.content ?? {})) {
    parts.push(element("p", "", element("code", kind)), fields(content));
  }
  const answers = Object.entries(facts.responses).map(([code, answer]) => [code, answer.description]);
  parts.push(table(["code", ""], answers));
  return parts;
}

document.getElementById("origin").textContent = location.origin;
fetch("/openapi.json").then((answer) => answer.json()).then(({ paths }) => {
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, facts] of Object.entries(methods)) {
      document.getElementById("paths").append(...operation(path, method, facts));
    }
  }
});
