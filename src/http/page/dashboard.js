// The dashboard: shows each sample as it comes. Everything that is shown goes in as text, never as markup; the
// drawings, which the service makes of numbers alone, as parsed SVG.

/// The address of a route beside this file; without the credentials that somebody may have typed into the address.
function here(name) {
  const address = new URL(name, import.meta.url);
  address.username = address.password = "";
  return address;
}

const element = (id) => document.getElementById(id);

// ---- words ----

const digits = (value) => (Math.abs(value) < 10 ? 2 : Math.abs(value) < 100 ? 1 : 0);
const number = (value, most = digits(value)) => value.toLocaleString("en", { maximumFractionDigits: most });

const words = {
  count: (value) => number(value),
  rate: (value) => number(value, Math.abs(value) < 10 ? 1 : 0),
  micros: (us) =>
    us < 1e3 ? `${number(us)} µs` : us < 1e6 ? `${number(us / 1e3)} ms` : words.seconds(us / 1e6),
  millis: (ms) => words.micros(ms * 1e3),
  seconds(seconds) {
    if (seconds > 0 && seconds < 1) return words.micros(seconds * 1e6);
    if (seconds < 120) return `${number(seconds)} s`;
    return seconds < 7200 ? `${number(seconds / 60, 0)} min` : `${number(seconds / 3600, 0)} h`;
  },
  bytes(bytes) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = 0;
    for (; bytes >= 1024 && power < units.length - 1; power += 1) bytes /= 1024;
    return `${number(bytes)} ${units[power]}`;
  },
  clock: (ms) => new Date(ms).toLocaleTimeString("en-GB"),
};

// ---- making and filling elements ----

function make(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function row(first, ...cells) {
  const made = document.createElement("tr");
  made.append(make("th", first, { scope: "row", class: "wide" }), ...cells);
  return made;
}

const figure = (text) => make("td", text, { class: "number" });
const at = (sample, path) => path.split(".").reduce((value, name) => value?.[name], sample);

/// Fills every element that names a field of the sample.
function fillFields(sample) {
  for (const place of document.querySelectorAll("[data-field]")) {
    const value = at(sample, place.dataset.field);
    place.dataset.raw = value ?? "";
    place.textContent = typeof value === "number" ? words[place.dataset.as](value) : "–";
  }
}

/// Does the work only when what it is about has changed, so that text can be selected and read in peace.
function onChange(work) {
  let before;
  return (value) => {
    const now = JSON.stringify(value);
    if (now !== before) work(value);
    before = now;
  };
}

// ---- the parts of the page ----

const states = { healthy: "Healthy", degraded: "Degraded: somebody should look", failing: "Failing: writes don't get through" };

const showHealth = onChange(({ state, reasons }) => {
  element("health").dataset.state = state;
  element("health-state").textContent = states[state];
  element("reasons").replaceChildren(
    ...reasons.map((reason) => {
      const item = make("li", "", { "data-kind": reason.kind });
      item.append(make("b", reason.message), make("span", `Next: ${reason.action}`));
      return item;
    }),
  );
});

/// Tells those who don't see it, and only when something new is wrong or all is well again.
const announce = onChange(({ state, kinds }) => {
  element("announcement").textContent = kinds.length
    ? `${states[state]}. ${kinds.length === 1 ? "One reason." : `${kinds.length} reasons.`}`
    : `${states[state]}.`;
});

function tell(id, what, more = "", isLong = false) {
  const [about, detail] = element(id).querySelectorAll("dd > *");
  about.textContent = what;
  detail.textContent = more;
  element(id).classList.toggle("long", isLong);
}

const phases = { begin: "another program", commit: "COMMIT", checkpoint: "checkpoint", recover: "recovery" };

function showNow({ health, stats }) {
  const { holder, oldest_waiter: waiter, oldest_read: reading, breaker } = health;
  const command = holder?.phase.command;
  const isLong = health.reasons.some(({ kind }) => kind === "long_hold" || kind === "foreign_lock");
  if (holder) {
    const lane = command ? `, ${command.lane} lane` : "";
    tell("holder", command?.label ?? phases[holder.phase], `for ${words.millis(holder.held_ms)}${lane}`, isLong);
    element("holder").dataset.heldMs = holder.held_ms;
  } else {
    tell("holder", "nobody", "the writer is idle");
    delete element("holder").dataset.heldMs;
  }
  if (waiter) tell("waiter", waiter.label, `for ${words.millis(waiter.waited_ms)}, ${waiter.lane} lane`);
  else tell("waiter", "nobody", "the queue is empty");
  if (reading) tell("reading", reading.label, `since ${words.millis(reading.age_ms)}; pins the WAL`);
  else tell("reading", "none", "nothing pins the WAL");
  if (breaker.state === "closed") tell("breaker", "accepted");
  else if (breaker.state === "open") tell("breaker", "refused", `for ${words.millis(breaker.since_ms)}: ${breaker.cause}`, true);
  else tell("breaker", "stopped for good", breaker.cause, true);
  tell("foreign", `${words.count(stats.foreign_commits)} foreign commits`, `${words.micros(stats.foreign_wait_us)} waited, or left free for them`);
}

/// The items of running imports stay where they are, so that their bars move.
function showImports(imports) {
  const list = element("imports");
  const items = imports.map((running) => {
    const known = [...list.children].find((item) => item.dataset.id === running.id);
    const item = known ?? make("li", "", { "data-id": running.id });
    if (!known) {
      const bar = make("progress", "", { "aria-label": `Import ${running.id}` });
      item.append(make("b", running.id), make("span"), bar, make("small"));
    }
    const [name, state, bar, detail] = item.children;
    const done = running.accepted + running.failed + running.skipped;
    const share = running.total ? `${Math.floor((100 * done) / running.total)} %` : "";
    item.dataset.state = running.state;
    state.dataset.state = running.state;
    state.textContent = [running.state === "paused" ? "paused" : "", share].filter(Boolean).join(" · ");
    if (running.total === null) {
      bar.removeAttribute("value");
    } else {
      bar.max = Math.max(running.total, 1);
      bar.value = done;
    }
    name.title = running.label;
    detail.textContent = [
      running.total === null ? `${words.count(done)} entries, total unknown` : `${words.count(done)} of ${words.count(running.total)} entries`,
      running.failed ? `${words.count(running.failed)} failed` : "",
      running.skipped ? `${words.count(running.skipped)} settled before` : "",
      `${words.count(running.batches)} batches`,
      running.batches_lost ? `${words.count(running.batches_lost)} lost` : "",
      `max hold ${words.micros(running.hold_max_us)}`,
      words.millis(running.elapsed_ms),
    ].filter(Boolean).join(" · ");
    return item;
  });
  // Moving an item that is in its place already would end the motion of its bar.
  for (const item of [...list.children]) if (!items.includes(item)) item.remove();
  for (const item of items) if (item.parentNode !== list) list.append(item);
  element("no-imports").hidden = items.length > 0;
}

/// Those that run are shown above, and further.
const showRecords = onChange((all) => {
  const records = all.filter(({ state }) => state !== "running" && state !== "paused");
  element("records-part").hidden = records.length === 0;
  element("records").replaceChildren(
    ...records.map((record) =>
      row(
        record.id,
        make("td", record.state),
        make("td", words.clock(record.started_at_ms)),
        figure(record.ended_at_ms === null ? "–" : words.millis(record.ended_at_ms - record.started_at_ms)),
        figure(words.count(record.accepted)),
        figure(words.count(record.failed)),
        figure(words.count(record.batches)),
        figure(words.micros(record.hold_max_us)),
      ),
    ),
  );
});

/// The rest is in stats.json.
const FAILURES_SHOWN = 12;

const showFailures = onChange((failures) => {
  element("failures-part").hidden = failures.length === 0;
  element("no-failures").hidden = failures.length > 0;
  element("failures").replaceChildren(
    ...failures.toReversed().slice(0, FAILURES_SHOWN).map((failed) => {
      const reason = failed.constraint ? `${failed.reason}: ${failed.constraint}` : failed.reason;
      const entry = failed.entry === null ? "" : `, entry ${failed.entry}`;
      const outcome = failed.outcome.replaceAll("_", " ");
      const made = row(
        `${failed.label}${entry}`,
        make("td", outcome, { class: "outcome", "data-outcome": failed.outcome }),
        make("td", reason, { class: "wide" }),
        figure(failed.extended_code ?? "–"),
        figure(words.count(failed.attempts)),
        figure(words.micros(failed.wait_us)),
        figure(words.micros(failed.hold_us)),
      );
      made.prepend(make("td", words.clock(failed.failed_at_ms)));
      return made;
    }),
  );
});

function show(sample) {
  const state = sample.health.state;
  document.title = `${state === "healthy" ? "" : `${states[state].split(":")[0]} · `}${sample.file} · solewriter`;
  element("title").textContent = sample.file;
  element("subtitle").textContent = `${sample.database} · sole writer of this SQLite database`;
  fillFields(sample);
  showHealth({ state, reasons: sample.health.reasons });
  announce({ state, kinds: sample.health.reasons.map(({ kind }) => kind) });
  showNow(sample);
  showImports(sample.imports);
  showRecords(sample.import_records);
  showFailures(sample.failures);
  element("taken").textContent = words.clock(sample.at_ms);
  element("sample").textContent = sample.sample;
}

function showCharts({ charts }) {
  if (document.hidden) return;
  for (const [id, { svg, label }] of Object.entries(charts)) {
    const place = element(`chart-${id}`);
    const drawing = new DOMParser().parseFromString(svg, "image/svg+xml").documentElement;
    place.setAttribute("aria-label", label);
    if (drawing.nodeName === "svg") place.replaceChildren(document.importNode(drawing, true));
  }
}

// ---- the connection ----

/// Without a sample for so long, what is shown is old.
const SILENCE_MS = 5000;
const RETRY_MS = 2000;

let heard = Date.now();
let events = null;

function connection(state, text) {
  element("connection").dataset.state = state;
  element("connection-words").textContent = text;
  document.body.classList.toggle("stale", state === "lost");
}

function lost() {
  if (element("connection").dataset.state === "lost") return;
  connection("lost", `disconnected since ${words.clock(Date.now())}, trying again`);
  element("announcement").textContent = "The connection is lost. What is shown is old.";
}

function connect() {
  heard = Date.now();
  events?.close();
  events = new EventSource(here("events"));
  events.addEventListener("sample", ({ data }) => {
    heard = Date.now();
    connection("live", "live");
    show(JSON.parse(data));
  });
  events.addEventListener("charts", ({ data }) => showCharts(JSON.parse(data)));
  events.addEventListener("error", ({ target }) => {
    lost();
    // The browser itself tries again after a lost connection, but not after an answer that is no stream.
    if (target === events && target.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
  });
}

// A connection can be lost without a word: after a sleep of the computer, or on another network.
setInterval(() => {
  if (Date.now() - heard <= SILENCE_MS) return;
  lost();
  connect();
}, 1000);

// ---- the theme ----

const THEME = "solewriter-theme";
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
const other = () => (theme() === "dark" ? "light" : "dark");

function remember(chosen) {
  // Browsers may forbid it; then the choice lasts as long as the page.
  try {
    if (chosen) localStorage.setItem(THEME, chosen);
    return localStorage.getItem(THEME);
  } catch {
    return chosen;
  }
}

function dress(chosen) {
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  element("theme").textContent = other() === "dark" ? "Dark" : "Light";
  element("theme").setAttribute("aria-label", `Switch to the ${other()} theme`);
}

element("theme").addEventListener("click", () => dress(remember(other())));
element("theme").hidden = false;
dark.addEventListener("change", () => dress());
dress(remember());

connect();
