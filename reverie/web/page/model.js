// The model in this page: its parts, unpacked, and a worker that runs it.

export const json = (id) => JSON.parse(document.getElementById(id).textContent);

// A part of the page: gzipped, in the page as text or beside it as a file.
export async function part(name) {
  const element = document.getElementById(`part-${name}`);
  const packed = element.dataset.from ? await fetched(element.dataset.from) : bytes(element.textContent);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function fetched(name) {
  if (location.protocol === "file:") throw new Error("from disk it reads no files: serve this folder, as by 'python -m http.server'");
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} is missing beside this page (${answer.status})`);
  return answer.arrayBuffer();
}

function bytes(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

export class Model {
  constructor() {
    this.asked = new Map(); // id -> [resolve, reject]
    this.id = 0;
    const source = new Blob([json("worker")], { type: "text/javascript" });
    this.worker = new Worker(URL.createObjectURL(source)); // no module: from disk, Chromium starts none
    this.worker.onmessage = ({ data: { id, problem, ...answer } }) => {
      const [resolve, reject] = this.asked.get(id);
      this.asked.delete(id);
      if (problem) reject(new Error(problem));
      else resolve(answer);
    };
    this.broken = new Promise((_, reject) => {
      this.worker.onerror = ({ message }) => reject(new Error(message ?? "its worker does not start"));
    });
    this.weights = part("weights");
  }

  ask(question) {
    const answer = new Promise((resolve, reject) => {
      this.asked.set(++this.id, [resolve, reject]);
      this.worker.postMessage({ id: this.id, ...question });
    });
    return Promise.race([answer, this.broken]);
  }

  // Start the runtime and load what a world begins with. The other program can wait until a picture is there.
  async start() {
    const [runtime, wasm] = await Promise.all([part("runtime"), part("wasm")]);
    await Promise.all([this.ask({ kind: "start", runtime, wasm }), this.load("begin")]);
  }

  async load(name) {
    const [model, weights] = await Promise.all([part(name), this.weights]);
    return this.ask({ kind: "load", name, model, weights });
  }

  close() {
    this.worker.terminate();
  }
}
