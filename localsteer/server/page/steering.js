/** Steering expressions, as localsteer/steering.py reads and writes them: `0.5 happy - 0.3 formal@8-20 + !verbose`. */

/** @typedef {{vector: string, strength: number, layers: string, ablate: boolean}} Term */

// What a strength ends with; "2024-01-05" and "3d" are names.
const NUMBER = /(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?=[\s*"'!+@]|$)/;
const NAME = /"[^"]+"|'[^']+'|(?!-)[^\s"'@*!+]+/;
const LAYERS = /@\d{1,6}(?:-\d{1,6})?(?!\d)/;
const TERM = new RegExp(`([+-]?)\\s*(?:(!)\\s*|(${NUMBER.source})\\s*\\*?\\s*)?(${NAME.source})(${LAYERS.source})?\\s*`, "y");

/** @param {string} text @returns {Term[]} @throws {SyntaxError} it does not parse */
function parse(text) {
  const terms = [];
  for (let at = text.length - text.trimStart().length; at < text.length; at = TERM.lastIndex) {
    TERM.lastIndex = at;
    const [, sign, bang, number, name, layers = ""] = TERM.exec(text) ?? [];
    const negative = sign === "-";
    if (!name || (terms.length && !sign) || (bang && negative)) throw new SyntaxError(`Not understood from “${text.slice(at)}” on.`);
    const strength = (negative ? -1 : 1) * Number(number ?? 1);
    terms.push({ vector: name.replace(/^["']|["']$/g, ""), strength, layers, ablate: Boolean(bang) });
  }
  return terms;
}

/** @param {Term[]} terms */
function format(terms) {
  const text = terms.map(({ vector, strength, layers, ablate }) => {
    const size = Math.abs(strength);
    return `${strength < 0 ? "-" : "+"} ${ablate ? "!" : size === 1 ? "" : `${size} `}${quoted(vector)}${layers}`;
  }).join(" ");
  return text.replace(/^\+ /, "").replace(/^- /, "-");
}

/** @param {string} name */
function quoted(name) {
  const plain = new RegExp(`^(?!${NUMBER.source})(?:${NAME.source})$`).test(name);
  return plain ? name : name.includes('"') ? `'${name}'` : `"${name}"`;
}

/** The expression that requests carry, and the strengths that it gives to vectors. Tells of a "change". */
class Steering extends EventTarget {
  text = "";
  /** Why the text does not parse; "" where it does. */
  problem = "";
  /** @type {Term[]} of the text, or of the last one that parsed */
  terms = [];

  /** All vectors that are named. */
  get names() {
    return [...new Set(this.terms.map((term) => term.vector))];
  }

  /** @param {string} name */
  strengthOf(name) {
    return this.#term(name)?.strength ?? 0;
  }

  /** It is sent as it was written, whether it parses or not. @param {string} text */
  write(text) {
    this.text = text;
    this.problem = "";
    try {
      this.terms = parse(text);
    } catch (error) {
      this.problem = /** @type {Error} */ (error).message;
    }
    this.dispatchEvent(new Event("change"));
  }

  /** All else stays; of several terms of one vector, the first is changed. @param {string} name @param {number} strength */
  turn(name, strength) {
    const old = this.#term(name);
    const turned = { vector: name, layers: "", ablate: false, ...old, strength };
    const terms = old ? this.terms.map((term) => (term === old ? turned : term)) : [...this.terms, turned];
    this.write(format(terms.filter((term) => term.ablate || term.strength !== 0)));
  }

  /** @param {string} name */
  #term(name) {
    return this.terms.find((term) => term.vector === name && !term.ablate);
  }
}

export const steering = new Steering();
