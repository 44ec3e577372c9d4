// The websocket: JSON objects out, JSON objects and binary messages in. Which there are is written in protocol.py.

const HEADER = 20;
const KINDS = ["frame", "gif", "mp4", "real"];

export class Wire {
  // on: one function per type of message ("world", "frame", "gif", "mp4", "picture", "busy", "error", "bye"), and "closed".
  constructor(on) {
    this.on = on;
    this.id = 0;
    this.open();
  }

  open() {
    const address = new URL("play", location.href); // beside the page, wherever a proxy has put it
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    address.hash = ""; // a websocket's address has none
    this.socket = new WebSocket(address);
    this.socket.binaryType = "arraybuffer";
    this.socket.onclose = () => this.on.closed();
    this.socket.onmessage = ({ data }) => {
      if (typeof data === "string") {
        const message = JSON.parse(data);
        this.on[message.type]?.(message);
        return;
      }
      const head = new DataView(data);
      const [kind, step, action, id, unsure] = [
        head.getUint32(0, true), head.getUint32(4, true), head.getInt32(8, true), head.getUint32(12, true), head.getFloat32(16, true),
      ];
      this.on[KINDS[kind]]?.({ step, action, id, unsure, bytes: new Uint8Array(data, HEADER) });
    };
  }

  get ready() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  get closed() {
    return this.socket.readyState === WebSocket.CLOSED;
  }

  // Returns the id that the answer will carry.
  send(command) {
    this.socket.send(JSON.stringify({ ...command, id: ++this.id }));
    return this.id;
  }

  sendPicture(bytes) {
    this.socket.send(bytes);
  }
}
