// Runs the model beside the page, so that buttons and pictures do not wait for it. One question is answered at a time.

let ort = null;
const programs = {};
const states = new Map(); // player -> the model's state after the last frame
let last = Promise.resolve();

onmessage = ({ data }) => (last = last.then(() => answer(data)));

async function answer({ id, kind, ...question }) {
  try {
    postMessage({ id, ...(await answers[kind](question)) });
  } catch (problem) {
    postMessage({ id, problem: String(problem?.message ?? problem) });
  }
}

const answers = {
  async start({ runtime, wasm }) {
    ort = await import(URL.createObjectURL(new Blob([runtime], { type: "text/javascript" })));
    Object.assign(ort.env.wasm, { wasmBinary: wasm, numThreads: 1 }); // threads need headers that no file has
  },
  async load({ name, model, weights }) {
    const externalData = weights.length ? [{ path: "weights", data: weights }] : [];
    programs[name] = await ort.InferenceSession.create(model, { executionProviders: ["wasm"], externalData });
  },
  // inputs: {name: [type, data, shape]}; a step also reads the state that the last run left to this player.
  async run({ program, player, inputs }) {
    const given = {};
    if (program === "step") for (const [name, array] of states.get(player)) given[`before-${name}`] = array;
    for (const [name, [type, data, shape]] of Object.entries(inputs)) given[name] = new ort.Tensor(type, data, shape);
    const { frame, unsure, ...state } = await programs[program].run(given);
    states.set(player, Object.entries(state));
    return { bytes: frame.data, unsure: unsure?.data[0] };
  },
};
