#!/usr/bin/env -S npx ts-node
/**
 * An echo client (RFC 862): it connects to an echo server over TCP, sends a
 * message, reads until the whole of it has come back, and closes.
 *
 *     npx ts-node client.ts [host] [port] [message]
 *
 * It prints this, while server.ts runs in another terminal:
 *
 *     Connected to server: localhost on port 54321
 *     Sending some data...
 *     Response from server: Hello World!
 *     Connection closed.
 */
import { Socket } from 'node:net';

const HOST = 'localhost';
const PORT = 54321;
const MESSAGE = 'Hello World!';
const TIMEOUT = 10; // seconds that each step waits for the server

/** The Python original, call by call. */
async function talk(host: string, port: number, message: Buffer): Promise<void> {
  const server = `${host} port ${port}`; // as errors name it
  const connection = await connect(host, port, server); // socket(), connect()
  console.log(`Connected to server: ${host} on port ${port}`);
  try {
    console.log('Sending some data...');
    connection.write(message); // sendall(); while Node sends, we receive already
    const reply = await receive(connection, message.length, server); // recv(), until all bytes are back
    printReply(reply);
    if (!reply.equals(message)) throw new Error('the reply differs from the message');
    await close(connection, message.length, server); // shutdown(), close()
  } finally {
    connection.destroy();
    console.log('Connection closed.');
  }
}

/**
 * socket(AF_INET, SOCK_STREAM), connect(). Throws if the name is unknown (ENOTFOUND), if the system or the server
 * refuses, see connect(2), and if the server is silent.
 */
async function connect(host: string, port: number, server: string): Promise<Socket> {
  const connection = new Socket({ allowHalfOpen: true }); // the server's FIN leaves our side open
  const attempted = new Promise((resolve) => connection.once('connectionAttempt', resolve));
  const connected = new Promise((resolve, reject) => {
    connection.once('connect', resolve);
    connection.on('error', (error) => reject(failed(server, error))); // later errors are thrown by recv()
  });
  connection.connect({ host, port, family: 4 }); // AF_INET: a name is looked up as IPv4
  try {
    await Promise.race([attempted, connected]); // the look-up of the name, which has a time-out of its own
    await inTime(connected, server);
    // If nobody listens, and the system picks this very port for our end, TCP connects the socket to itself.
    if (connection.localPort === connection.remotePort && connection.localAddress === connection.remoteAddress)
      throw new Error(`connection to ${server} failed (ECONNREFUSED): nobody listens, the socket met itself`);
  } catch (error) {
    connection.destroy();
    throw error;
  }
  return connection;
}

/** Receives as many bytes as were sent: TCP is a stream, so they come in any number of pieces. Throws if fewer come. */
async function receive(connection: Socket, length: number, server: string): Promise<Buffer> {
  const arrivals = connection.iterator({ destroyOnReturn: false });
  const pieces: Buffer[] = [];
  let received = 0;
  try {
    while (received < length) {
      const piece = await recv(arrivals, server);
      if (piece.length === 0) throw await earlyEnd(connection, received, length, server);
      pieces.push(piece);
      received += piece.length;
    }
    if (received > length) throw surplus(length);
  } catch (error) {
    if (received > 0) printReply(Buffer.concat(pieces)); // what came before the fault
    throw error;
  }
  return Buffer.concat(pieces);
}

/** recv(): resolves to the bytes that have come, to none at EOF. Throws if the connection breaks or nothing comes. */
async function recv(arrivals: AsyncIterator<Buffer>, server: string): Promise<Buffer> {
  const arrival = arrivals.next().catch((error) => { throw failed(server, error); });
  const { value, done } = await inTime(arrival, server);
  return done ? Buffer.alloc(0) : value;
}

/** The fault if the server closes too early. A program that was suspended takes an RST for EOF; then send() fails. */
function earlyEnd(connection: Socket, received: number, length: number, server: string): Promise<Error> {
  return new Promise((resolve) => connection.write('', (error) => { // send() of nothing
    resolve(error ? failed(server, error) : new Error(`server closed after ${received} of ${length} bytes`));
  }));
}

/** shutdown(), which sends our FIN, then waits for the server's. How it ends does not matter, unless more bytes come. */
async function close(connection: Socket, length: number, server: string): Promise<void> {
  connection.end(); // shutdown()
  const more = await recv(connection.iterator({ destroyOnReturn: false }), server).catch(() => Buffer.alloc(0));
  if (more.length === 0) return;
  printReply(more);
  throw surplus(length);
}

/** settimeout(): resolves as the step does, but throws if that takes longer than TIMEOUT. */
function inTime<T>(step: Promise<T>, server: string): Promise<T> {
  return new Promise((resolve, reject) => {
    const silence = new Error(`nothing came from ${server} for ${TIMEOUT} s`);
    // If we were suspended (Ctrl-Z), the timer comes before what has arrived: look at the socket once more.
    const timer = setTimeout(() => setImmediate(reject, silence), TIMEOUT * 1000);
    step.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

const failed = (server: string, { code }: NodeJS.ErrnoException) => new Error(`connection to ${server} failed (${code})`);
const surplus = (length: number) => new Error(`server sent more than the ${length} bytes of the message`);

function printReply(reply: Buffer): void {
  console.log(`Response from server: ${visible(reply.toString())}`);
}

/** Escapes control characters except tab and newline, as \x1b: printed raw, they could control the terminal. */
function visible(text: string): string {
  const escape = (character: string) => `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`;
  return text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f]/g, escape); // C0, DEL and C1
}

const USAGE = 'Usage: npx ts-node client.ts [host] [port] [message]';
const HELP = `${USAGE}

Sends a message to a TCP echo server and prints what comes back.

  host        IPv4 address, IPv6 address or name (looked up as IPv4) of the
              server (default: ${HOST})
  port        1 to 65535 (default: ${PORT})
  message     any text, sent as UTF-8 (default: ${MESSAGE})
  -h, --help  show this help`;

/** Does what the arguments ask for. */
async function main(args: string[]): Promise<void> {
  const [host = HOST, port = String(PORT), message = MESSAGE, unexpected] = args;
  const option = args.find((arg, index) => arg.startsWith('-') && index !== 2); // a message may start with a dash
  if (option === '-h' || option === '--help') console.log(HELP);
  else if (option !== undefined) fail(`unknown option "${option}"`, 2);
  else if (unexpected !== undefined) fail(`unexpected argument "${unexpected}"`, 2);
  else if (host === '') fail('host "" is neither a name nor an address', 2);
  else if (!/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65535)
    fail(`port "${port}" is not a whole number from 1 to 65535`, 2);
  else await talk(host, Number(port), Buffer.from(message));
}

/** Reports a failure on stderr, and sets the exit status: 1 at run time, 2 for a usage error. */
function fail(message: string, status: 1 | 2): void {
  console.error(`client.ts: ${message}`);
  if (status === 2) console.error(USAGE);
  process.exitCode = status;
}

/** Reports an exception, expected or not, and ends the process. */
function crash({ message }: Error): void {
  fail(message, 1);
  process.exit();
}

process.on('uncaughtException', crash); // thrown by a listener; the others come to catch()
process.stdout.once('error', ({ code }: NodeJS.ErrnoException) => {
  if (code !== 'EPIPE') fail(`cannot print (${code})`, 1); // EPIPE: stdout was closed, and we go on
}).on('error', () => {}); // once is enough
main(process.argv.slice(2)).catch(crash);
