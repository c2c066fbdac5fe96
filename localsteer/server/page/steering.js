/** Steering expressions, as localsteer/steering/expression.py reads and writes them: `0.5 happy - 0.3 formal@8-20 + !verbose`. */

/** @typedef {{vector: string, strength: number, where: string, ablate: boolean}} Term `where`: layers and phase, as they were written */

// What a strength ends with; "2024-01-05" and "3d" are names.
const NUMBER = /(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?=[\s*"'!+@]|$)/;
const NAME = /"[^"]+"|'[^']+'|(?!-)[^\s"'@*!+]+/;
const WHERE = /(?:@\d{1,6}(?:-\d{1,6})?(?!\d))?(?:@(?:answer|thinking)(?=[\s@+-]|$))?/;
const TERM = new RegExp(`([+-]?)\\s*(?:(!)\\s*|(${NUMBER.source})\\s*\\*?\\s*)?(${NAME.source})(${WHERE.source})\\s*`, "y");

/** @param {string} text @returns {Term[]} @throws {SyntaxError} it does not parse */
function parse(text) {
  const terms = [];
  for (let at = text.length - text.trimStart().length; at < text.length; at = TERM.lastIndex) {
    TERM.lastIndex = at;
    const [, sign, bang, number, name, where] = TERM.exec(text) ?? [];
    const negative = sign === "-";
    if (!name || (terms.length && !sign) || (bang && negative)) throw new SyntaxError(`Not understood from “${text.slice(at)}” on.`);
    const strength = (negative ? -1 : 1) * Number(number ?? 1);
    terms.push({ vector: name.replace(/^["']|["']$/g, ""), strength, where, ablate: Boolean(bang) });
  }
  return terms;
}

/** @param {Term[]} terms */
function format(terms) {
  const text = terms.map(({ vector, strength, where, ablate }) => {
    const size = Math.abs(strength);
    return `${strength < 0 ? "-" : "+"} ${ablate ? "!" : size === 1 ? "" : `${size} `}${quoted(vector)}${where}`;
  }).join(" ");
  return text.replace(/^\+ /, "").replace(/^- /, "-");
}

/** @param {string} name */
function quoted(name) {
  const plain = new RegExp(`^(?!${NUMBER.source})(?:${NAME.source})$`).test(name);
  return plain ? name : name.includes('"') ? `'${name}'` : `"${name}"`;
}

/** The vectors that an expression names; none where it does not parse. @param {string} text */
export function namesIn(text) {
  try {
    return [...new Set(parse(text).map((term) => term.vector))];
  } catch {
    return [];
  }
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

  /** @param {string} name @param {number} strength */
  turn(name, strength) {
    this.write(this.with(name, strength));
  }

  /**
   * The expression with another strength of a vector. All else stays; of several terms of one vector, the first is changed.
   * @param {string} name @param {number} strength
   */
  with(name, strength) {
    const old = this.#term(name);
    const turned = { vector: name, where: "", ablate: false, ...old, strength };
    const terms = old ? this.terms.map((term) => (term === old ? turned : term)) : [...this.terms, turned];
    return format(terms.filter((term) => term.ablate || term.strength !== 0));
  }

  /** The expression with all signs turned; null where there is none: what is removed has no opposite. */
  get opposite() {
    if (this.problem || !this.terms.length || this.terms.some((term) => term.ablate)) return null;
    return format(this.terms.map((term) => ({ ...term, strength: -term.strength })));
  }

  /** @param {string} name */
  #term(name) {
    return this.terms.find((term) => term.vector === name && !term.ablate);
  }
}

export const steering = new Steering();
