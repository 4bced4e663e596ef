"use strict";
// The page of one dictionary: a table of latents, and one view that shows any of them.
// All text of models and corpora enters the page as text nodes; no markup is ever parsed.
(() => {
  const ROWS = 100;
  const BEFORE = 32;
  const AFTER = 16;
  const BANDS = ["Strongest", "Upper third of its range", "Middle third", "Lower third"];

  const byId = (id) => document.getElementById(id);
  const facts = JSON.parse(byId("facts").textContent);
  const controls = byId("controls").elements;
  const headers = [...document.querySelectorAll("#latents th")];

  // Data files call superscope(name, data). They come by script tags, because a page opened from
  // disk may not fetch.
  const pending = new Map();
  const loaded = new Map();
  window.superscope = (name, data) => pending.get(name)?.(data);

  function need(name, path) {
    if (!loaded.has(name)) {
      loaded.set(name, new Promise((resolve, reject) => {
        pending.set(name, resolve);
        const script = document.createElement("script");
        script.src = path;
        script.onload = () => script.remove();
        script.onerror = () => {
          loaded.delete(name);
          reject(new Error(`${path} is missing; run interp explore again`));
        };
        document.head.append(script);
      }));
    }
    return loaded.get(name);
  }

  const table = (seed) => need(`table-${seed}`, `table-${seed}.js`);
  const shard = (kind, seed, latent) => {
    const name = `${kind}-${seed}-${Math.floor(latent / facts.shard)}`;
    return need(name, `${name}.js`);
  };
  const text = () => need(facts.text_name, facts.text_path);

  // Elements

  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key in element) element[key] = value;
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }

  // Marks that would act on the text around them, or that nobody could see.
  const UNSEEN = /[\p{C}\p{Zl}\p{Zp}\u00a0\u034f\u115f\u1160\u17b4\u17b5\u2000-\u200a\u202f\u205f\u2800\u3000\u3164\ufe00-\ufe0f\uffa0]/u;

  function signOf(character) {
    const code = character.codePointAt(0);
    if (character === "\n") return "↵";
    if (character === "\t") return "⇥";
    if (code >= 0xdc80 && code <= 0xdcff) return `\\x${(code - 0xdc00).toString(16).toUpperCase()}`;
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    return `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
  }

  // Text as nodes, with every unseen mark written out.
  function visible(string, { chip = false } = {}) {
    const nodes = [];
    let plain = "";
    const flush = () => {
      if (plain) nodes.push(document.createTextNode(plain));
      plain = "";
    };
    for (const character of string) {
      const space = chip && character === " ";
      if (!space && !UNSEEN.test(character)) {
        plain += character;
        continue;
      }
      flush();
      nodes.push(make("span", { className: "sign" }, space ? "␣" : signOf(character)));
      if (character === "\n" && !chip) nodes.push(make("span", { className: "break" }, "\n"));
    }
    flush();
    return nodes;
  }

  const chip = (string) => make("span", { className: "chip" }, ...visible(string, { chip: true }));
  const chips = (strings) => strings.flatMap((s) => [chip(s), " "]);

  const significant = (x, digits = 3) => Number(x).toLocaleString("en", { maximumSignificantDigits: digits });
  const percent = (x) => (x === 0 ? "0" : x < 0.0001 ? "<0.01%" : `${(100 * x).toPrecision(2)}%`);
  const whole = (n) => n.toLocaleString("en");
  const fixed = (x) => (x === null ? "–" : x.toFixed(2));
  const plural = (n, word) => `${whole(n)} ${word}${n === 1 ? "" : "s"}`;

  // Where we are

  function place() {
    const hash = new URLSearchParams(location.hash.slice(1));
    const number = (key, end) => {
      const n = Number(hash.get(key) ?? NaN);
      return Number.isInteger(n) && n >= 0 && n < end ? n : null;
    };
    return { seed: number("seed", facts.n_seeds) ?? 0, latent: number("latent", facts.d_sae) };
  }

  const address = (seed, latent) => `#seed=${seed}` + (latent === undefined ? "" : `&latent=${latent}`);

  // The table

  const sorting = { key: "mass", down: true };
  let seed = 0;
  let rows = null;
  let order = [];
  let page = 0;

  const CELLS = {
    number: (i) => make("a", { href: address(seed, i) }, String(i)),
    fires: (i) => chips(strings(rows.fires[i])),
    label: (i) => (rows.label[i] < 0 ? "" : make("span", { className: rows.told[i] ? "told" : "untold" },
      rows.labels[rows.label[i]])),
    f1: (i) => (rows.label[i] < 0 ? "" : fixed(rows.f1[i])),
    density: (i) => percent(rows.density[i]),
    mass: (i) => percent(rows.mass[i]),
    found: (i) => (rows.found[i] === null ? rows.states[rows.state[i]] : `${rows.found[i]} of ${facts.n_seeds}`),
    entropy: (i) => (rows.entropy[i] === null ? "–" : rows.entropy[i].toFixed(1)),
    near: (i) => [fixed(rows.near_cosine[i]), " ", make("a", { href: address(seed, rows.near[i]) }, String(rows.near[i]))],
    promotes: (i) => chips(strings(rows.promotes[i])),
  };

  const strings = (ids) => ids.map((id) => rows.strings[id]);

  // What a column is sorted by; null comes last either way.
  const SORTED = {
    number: (i) => i,
    fires: (i) => (rows.fires[i].length ? strings(rows.fires[i])[0] : null),
    label: (i) => (rows.label[i] < 0 ? null : rows.labels[rows.label[i]]),
    f1: (i) => (rows.label[i] < 0 ? null : rows.f1[i]),
    found: (i) => rows.found[i],
    near: (i) => rows.near_cosine[i],
    promotes: (i) => (rows.promotes[i].length ? strings(rows.promotes[i])[0] : null),
  };

  function arrange() {
    const words = controls.words.value.toLowerCase().trim().split(/\s+/).filter(Boolean);
    const found = controls.found.value;
    const label = controls.label?.value ?? "";
    const keep = (i) => {
      if (found === "0" && rows.found[i] !== null) return false;
      if (found === "1" && rows.found[i] !== 1) return false;
      if (found > "1" && !(rows.found[i] >= Number(found))) return false;
      if (label === "told" && !rows.told[i]) return false;
      if (label !== "" && label !== "told" && rows.labels[rows.label[i]] !== label) return false;
      if (!words.length) return true;
      const said = rows.said[i] ??= [...strings(rows.fires[i]), ...strings(rows.promotes[i]),
        rows.labels[rows.label[i]] ?? "", String(i)].join("\n").toLowerCase();
      return words.every((word) => said.includes(word));
    };
    order = [];
    for (let i = 0; i < facts.d_sae; i++) if (keep(i)) order.push(i);
    const column = rows[sorting.key];
    const value = SORTED[sorting.key] ?? ((i) => column[i]);
    const values = order.map((i) => [value(i), i]);
    const sign = sorting.down ? -1 : 1;
    values.sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      return (a < b ? -sign : a > b ? sign : 0) || i - j;
    });
    order = values.map(([, i]) => i);
  }

  function draw() {
    const last = Math.max(Math.ceil(order.length / ROWS) - 1, 0);
    page = Math.min(page, last);
    const shown = order.slice(page * ROWS, (page + 1) * ROWS);
    const body = document.querySelector("#latents tbody");
    body.replaceChildren(...shown.map((i) => make("tr", { className: rows.found[i] === null && rows.matched ? "hollow" : "" },
      ...headers.map(({ dataset: { key } }, at) => {
        const cell = at === 0 ? make("th", { scope: "row" }) : make("td", { className: key });
        cell.append(...[CELLS[key](i)].flat());
        return cell;
      }))));
    for (const header of headers) {
      const mine = header.dataset.key === sorting.key;
      header.setAttribute("aria-sort", mine ? (sorting.down ? "descending" : "ascending") : "none");
    }
    byId("count").textContent = order.length === facts.d_sae
      ? plural(facts.d_sae, "latent") : `${whole(order.length)} of ${plural(facts.d_sae, "latent")}`;
    byId("page").textContent = order.length
      ? `${whole(page * ROWS + 1)} to ${whole(page * ROWS + shown.length)}` : "none";
    byId("back").disabled = page === 0;
    byId("on").disabled = page === last;
  }

  function rearrange() {
    arrange();
    page = 0;
    draw();
  }

  async function choose(wanted) {
    const data = await table(wanted);
    if (rows === data) return;
    seed = wanted;
    rows = data;
    rows.said ??= new Array(facts.d_sae);
    controls.seed.value = String(seed);
    const labels = controls.label;
    if (labels && labels.options.length === 2) {
      for (const name of rows.labels) labels.append(make("option", { value: name }, name));
    }
    rearrange();
  }

  // One latent

  function fact(name, ...value) {
    return make("div", {}, make("dt", {}, name), make("dd", {}, ...value));
  }

  function histogram(counts, top) {
    const width = 360;
    const height = 96;
    const svg = (tag, attributes) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      return element;
    };
    const most = Math.max(...counts);
    // Heights by the logarithm: weak firings are thousands of times as many as strong ones.
    const tall = (n) => (n ? (height * Math.log1p(n)) / Math.log1p(most) : 0);
    const step = width / counts.length;
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `Firings by activation from 0 to ${significant(top)}, in ${counts.length} equal bins: ${counts.join(", ")}` });
    counts.forEach((n, i) => {
      const bar = svg("rect", { x: i * step + 0.5, width: step - 1, y: height - tall(n), height: tall(n), class: "bar" });
      const title = svg("title", {});
      title.textContent = `${plural(n, "firing")} from ${significant((i * top) / counts.length)} to ${significant(((i + 1) * top) / counts.length)}`;
      bar.append(title);
      picture.append(bar);
    });
    return make("figure", { className: "histogram" }, picture,
      make("figcaption", {}, make("span", {}, "0"), make("span", {}, "activation, counts on a log scale"), make("span", {}, significant(top))));
  }

  function tokenList(title, tokens) {
    const most = Math.max(...tokens.map(([, x]) => Math.abs(x)), 1e-9);
    return make("div", {}, make("h3", {}, title), make("ol", { className: "logits" },
      ...tokens.map(([string, x]) => {
        const bar = make("span", { className: "share" });
        bar.style.setProperty("--share", `${(100 * Math.abs(x)) / most}%`);
        return make("li", {}, chip(string), bar, make("span", { className: "value" }, x.toFixed(2).replace("-", "−")));
      })));
  }

  function linked(rowsOf, head) {
    return make("div", { className: "scroll" }, make("table", {},
      make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...rowsOf.map((cells) => make("tr", {}, ...cells.map((cell, i) => make(i ? "td" : "th", i ? {} : { scope: "row" }, ...[cell].flat())))))));
  }

  function documentOf(source, position) {
    let low = 0;
    let high = source.documents.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (source.documents[middle][0] <= position) low = middle;
      else high = middle - 1;
    }
    return source.documents[low];
  }

  function passage(source, [, centre, flat], top) {
    const acts = new Map();
    for (let i = 0; i < flat.length; i += 2) acts.set(centre + flat[i], flat[i + 1]);
    const [first, end, name] = documentOf(source, centre);
    const block = centre - (centre % source.n_ctx);
    const words = make("p", { className: "words" });
    const item = make("li", {});
    const button = make("button", { type: "button", ariaExpanded: "false" }, "More context");
    function fill(before, after) {
      const from = Math.max(centre - before, first, block);
      const to = Math.min(centre + after + 1, end, block + source.n_ctx);
      words.replaceChildren();
      for (let at = from; at < to; at++) {
        const act = acts.get(at) ?? 0;
        const token = make(at === centre ? "mark" : "span", { className: "tok" }, ...visible(source.strings[source.ids[at]]));
        if (act) {
          token.classList.add("on");
          token.title = `activation ${significant(act)}`;
          token.style.setProperty("--on", `${Math.round(12 + (68 * act) / top)}%`);
        }
        words.append(token);
      }
    }
    button.addEventListener("click", () => {
      const open = button.ariaExpanded === "false";
      button.ariaExpanded = String(open);
      button.textContent = open ? "Less context" : "More context";
      words.classList.toggle("open", open);
      fill(open ? facts.before : BEFORE, open ? facts.after : AFTER);
    });
    fill(BEFORE, AFTER);
    item.append(words, make("p", { className: "source" }, significant(acts.get(centre)), " in ", make("bdi", {}, ...visible(name)), " ", button));
    return item;
  }

  function whatItIs(row) {
    if (row.state === "dead") return "It never fires on the held-out text.";
    if (row.state === "rare") return "It fires on fewer than 10 held-out tokens, too few to count.";
    if (row.state === "dense") return "It fires on a fifth of the tokens or more, so the study does not count it.";
    if (row.state === "duplicate") return "A heavier latent of this dictionary has almost the same direction; the two count as one.";
    if (row.found === null) return "The study matched no seeds here.";
    if (row.found === 1) return "No other seed found it.";
    return `Found by ${row.found} of ${facts.n_seeds} seeds.`;
  }

  async function show(wanted, latent) {
    await choose(wanted);
    const [ofShard, source, others] = await Promise.all(
      [shard("latents", wanted, latent), text(), shard("related", wanted, latent).catch(() => null)]);
    const now = place();
    if (now.seed !== wanted || now.latent !== latent) return;
    const record = ofShard[latent % facts.shard];
    const i = latent;
    const state = rows.states[rows.state[i]];
    const at = order.indexOf(i);
    const title = make("h1", { id: "latent-title", tabIndex: -1 }, `Latent ${latent}`);
    const step = (n, word) => (at >= 0 && order[at + n] !== undefined
      ? make("a", { href: address(wanted, order[at + n]) }, word) : make("span", { ariaHidden: "true" }, word));
    const related = others ? others.latents[latent % facts.shard].map(([group, other, r]) => [
      make("a", { href: `${others.groups[group].href}#seed=0&latent=${other}` }, String(other)),
      others.groups[group].title, fixed(r)]) : [];
    const bands = BANDS.map((name, band) => [name, record.passages.filter(([of]) => of === band)]);
    byId("latent-view").replaceChildren(...[
      make("nav", { className: "steps", ariaLabel: "Latents in the order of the table" },
        step(-1, "Previous"), make("a", { href: address(wanted) }, "Table"), step(1, "Next")),
      title,
      make("p", { className: "answer" }, `${facts.title}, seed ${wanted}. ${whatItIs({ state, found: rows.found[i] })}`),
      make("dl", { className: "glance" },
        fact("fires on", percent(rows.density[i]), " of tokens"),
        fact("share of mass", percent(rows.mass[i])),
        fact("largest activation", significant(rows.max[i])),
        ...(rows.entropy[i] === null ? [] : [fact("entropy of its tokens", `${rows.entropy[i].toFixed(1)} bits`)]),
        ...(rows.label[i] < 0 ? [] : [fact("label", CELLS.label(i), ` (F1 ${fixed(rows.f1[i])}${rows.told[i] ? "" : ", too weak for a name"})`)])),
      ...(record.passages.length ? [
        make("section", { className: "how" },
          make("div", {}, make("h2", {}, "How strongly"), histogram(record.histogram, rows.max[i])),
          make("div", {}, make("h2", {}, "On which tokens"),
            make("p", { className: "note" }, "Shares of all its activation; a full bar would mean one token alone."),
            tokensOf(record.fires_on)))] : []),
      ...(record.passages.length ? [make("section", {}, make("h2", {}, "Where it fires"),
        make("p", { className: "note" }, "The marked token is the one chosen; shading is the activation, relative to the largest. Passages that repeat another word for word are left out."),
        ...bands.filter(([, found]) => found.length).flatMap(([name, found]) => [make("h3", {}, name),
          make("ol", { className: "passages" }, ...found.map((one) => passage(source, one, rows.max[i])))]))] : []),
      make("section", {}, make("h2", {}, "What it writes"),
        make("p", { className: "note" }, "Logits, centred over the vocabulary, if the final stream were this decoder direction alone."),
        make("div", { className: "pair" }, tokenList("Promotes", record.promotes), tokenList("Suppresses", record.suppresses))),
      make("section", {}, make("h2", {}, "Latents like it"),
        ...(record.in_seeds.length ? [make("h3", {}, "In other seeds"), linked(
          record.in_seeds.map(([other, number, cosine, r, counted]) => [
            make("a", { href: address(other, number) }, String(number)), `seed ${other}`, fixed(cosine), fixed(r), counted ? "counted as one" : "nearest, not counted"]),
          ["Latent", "Seed", "Cosine", "Correlation", ""])] : []),
        ...(related.length ? [make("h3", {}, "In other layers, sizes and models"), linked(related, ["Latent", "Where", "Correlation"])] : []),
        ...(others && !related.length ? [make("p", { className: "note" }, others.groups.length
          ? `No latent of the first seed of ${others.groups.length === 1 ? "one other dictionary" : `${others.groups.length} other dictionaries`} has a correlation of ${others.least} or more.`
          : "No other dictionary here was read on the same tokens.")] : []),
        make("h3", {}, "In the same dictionary"), linked(
          record.neighbours.map(([number, cosine]) => [make("a", { href: address(wanted, number) }, String(number)), fixed(cosine)]),
          ["Latent", "Cosine"])),
    ]);
    byId("table-view").hidden = true;
    byId("latent-view").hidden = false;
    document.title = `Latent ${latent}, seed ${wanted}: ${facts.title}`;
    scrollTo(0, 0);
    title.focus({ preventScroll: true });
  }

  function tokensOf(found) {
    return make("ol", { className: "logits" }, ...found.map(([string, share]) => {
      const bar = make("span", { className: "share" });
      bar.style.setProperty("--share", `${100 * share}%`);
      return make("li", {}, chip(string), bar, make("span", { className: "value" }, percent(share)));
    }));
  }

  async function go() {
    const { seed: wanted, latent } = place();
    byId("trouble").hidden = true;
    try {
      if (latent !== null) {
        await show(wanted, latent);
      } else {
        const from = byId("table-view").hidden;
        await choose(wanted);
        byId("latent-view").hidden = true;
        byId("table-view").hidden = false;
        document.title = facts.title;
        if (from) byId("content").focus();
      }
      document.body.dataset.ready = location.hash || "#";
    } catch (error) {
      byId("trouble").textContent = error.message;
      byId("trouble").hidden = false;
    }
  }

  controls.words.addEventListener("input", rearrange);
  controls.found.addEventListener("change", rearrange);
  controls.label?.addEventListener("change", rearrange);
  controls.seed.addEventListener("change", () => { location.hash = address(Number(controls.seed.value)); });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const header of headers) {
    header.querySelector("button").addEventListener("click", () => {
      const { key } = header.dataset;
      // Names and numbers begin at their beginning, amounts at the largest.
      const down = !["number", "fires", "label", "promotes", "entropy"].includes(key);
      sorting.down = sorting.key === key ? !sorting.down : down;
      sorting.key = key;
      rearrange();
    });
  }
  byId("back").addEventListener("click", () => { page -= 1; draw(); });
  byId("on").addEventListener("click", () => { page += 1; draw(); });
  addEventListener("hashchange", go);
  go();
})();
