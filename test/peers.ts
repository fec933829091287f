/** The other side of the scripts: bare sockets, which the end of the test closes. */
import { writeFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { scratch } from './scripts';

/** Listens and hands each connection that comes to talk(). Resolves to the port, chosen by the system if it is 0. */
export function listen(
  t: TestContext, talk: (connection: Socket) => unknown, host = '127.0.0.1', port = 0,
): Promise<number> {
  return new Promise((resolve, reject) => {
    const connections = new Set<Socket>();
    const server = createServer({ allowHalfOpen: true }, (connection) => {
      connections.add(connection);
      connection.on('error', () => {}); // the peer is free to break off; the test looks at what it printed
      Promise.resolve(talk(connection)).catch(() => connection.destroy()); // the script sees that
    });
    server.on('error', reject);
    server.listen(port, host, () => resolve((server.address() as AddressInfo).port));
    t.after(() => {
      for (const connection of connections) connection.destroy();
      server.close();
    });
  });
}

/** Listens for one connection, which it resolves to when it comes. */
export async function accepted(t: TestContext): Promise<{ port: number; connection: Promise<Socket> }> {
  let accept: (connection: Socket) => void = () => {};
  const connection = new Promise<Socket>((resolve) => { accept = resolve; });
  return { port: await listen(t, (socket) => accept(socket)), connection };
}

/**
 * A port of 127.0.0.1 at which nothing listens. It is below those from which the system chooses, so that no other test
 * happens to get it.
 */
export function closedPort(): Promise<number> {
  return new Promise((resolve) => {
    const port = 15_000 + Math.floor(Math.random() * 15_000);
    const server = createServer().listen(port, '127.0.0.1', () => server.close(() => resolve(port)));
    server.on('error', () => resolve(closedPort())); // it is taken: try another
  });
}

/** Connects to a port, with the half-close that a client of an echo server needs. Rejects if it is refused. */
export function dial(t: TestContext, port: number, host = '127.0.0.1'): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ port, host, allowHalfOpen: true }, () => resolve(socket));
    socket.on('error', reject); // after the connection stands, this does nothing
    t.after(() => socket.destroy());
  });
}

/** All that comes from the socket up to EOF. Rejects if the connection breaks. */
export function receiveAll(socket: Socket): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const pieces: Buffer[] = [];
    socket.on('data', (piece) => pieces.push(piece));
    socket.on('end', () => resolve(Buffer.concat(pieces)));
    socket.on('error', reject);
  });
}

/**
 * The server that the document describes, one connection of it: what recv() of at most
 * 1,024 bytes gives is sent back, until nothing more comes; then it closes.
 */
export async function documentedServer(connection: Socket): Promise<void> {
  const arrivals: AsyncIterable<Buffer> = connection.iterator({ destroyOnReturn: false });
  for await (const arrived of arrivals) {
    for (let start = 0; start < arrived.length; start += 1024) {
      const piece = arrived.subarray(start, start + 1024);
      await new Promise((sent) => connection.write(piece, sent)); // sendall()
    }
  }
  connection.end();
}

/** The environment in which Node runs the code before the script. */
export function preload(t: TestContext, code: string): NodeJS.ProcessEnv {
  const file = join(scratch(t), 'preload.js');
  writeFileSync(file, code);
  return { NODE_OPTIONS: `--require ${file}` };
}
