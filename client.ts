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
 *
 * Left out on purpose: more than one message, and another try if the server
 * is not there yet.
 */
import { Socket } from 'node:net';

const HOST = 'localhost';
const PORT = 54321;
const MESSAGE = 'Hello World!';
const TIMEOUT = 10; // seconds that each step waits for the server

/** The client, step by step. Each comment names a call of Python's socket module. Throws if the conversation fails. */
async function talk(host: string, port: number, message: Buffer): Promise<void> {
  const server = `${host} port ${port}`; // its name in error messages
  const connection = await connect(host, port, server); // socket(), connect()
  console.log(`Connected to server: ${host} on port ${port}`);
  try {
    console.log('Sending some data...');
    connection.write(message); // sendall(), which need not end before the first bytes are back
    const reply = await receive(connection, message.length, server); // recv(), until all bytes are back
    printReply(reply);
    if (!reply.equals(message)) throw new Error('the reply differs from the message');
    await close(connection, message.length, server); // shutdown(), close()
  } finally {
    connection.destroy();
    console.log('Connection closed.');
  }
}

/** socket(AF_INET, SOCK_STREAM), connect(). Throws if the name is unknown or connect(2) fails, e.g. ECONNREFUSED. */
async function connect(host: string, port: number, server: string): Promise<Socket> {
  const connection = new Socket({ allowHalfOpen: true }); // after the server's FIN it stays open, until close()
  const attempted = new Promise((resolve) => connection.on('connectionAttempt', resolve));
  const connected = new Promise((resolve, reject) => {
    connection.on('connect', resolve);
    connection.on('error', (error) => reject(failure(server, error))); // once connected, recv() throws it
  });
  connection.connect({ host, port, family: 4 }); // AF_INET: a name is looked up as IPv4
  await Promise.race([attempted, connected]); // the look-up of the name ends by itself
  await inTime(connected, server);
  // Nobody listens, but the system chose this very port for our end: TCP connects such a socket to itself.
  const { localAddress, localPort, remoteAddress, remotePort } = connection;
  if (remotePort !== undefined && remotePort === localPort && remoteAddress === localAddress)
    throw new Error(`connection to ${server} failed (ECONNREFUSED): nobody listens, TCP connected it to itself`);
  return connection;
}

/** Receives as many bytes as were sent, in any number of pieces: TCP is a stream. Throws if fewer or more come. */
async function receive(connection: Socket, length: number, server: string): Promise<Buffer> {
  const arrivals = connection.iterator({ destroyOnReturn: false }); // EOF leaves the socket open, for close()
  const pieces: Buffer[] = [];
  let received = 0;
  try {
    while (received < length) {
      const piece = await recv(arrivals, server);
      if (piece.length === 0) throw await earlyEnd(connection, received, length, server);
      pieces.push(piece);
      received += piece.length;
    }
    if (received > length) throw excess(length);
  } catch (error) {
    if (received > 0) printReply(Buffer.concat(pieces));
    throw error;
  }
  return Buffer.concat(pieces);
}

/** recv(): resolves to the bytes that have come, at EOF to none. Throws if the connection breaks or nothing comes. */
async function recv(arrivals: AsyncIterator<Buffer, undefined>, server: string): Promise<Buffer> {
  const arrival = arrivals.next().catch((error: NodeJS.ErrnoException) => { throw failure(server, error); });
  const { value } = await inTime(arrival, server);
  return value ?? Buffer.alloc(0);
}

/** Why the reply ended early. After a suspension, Node may take an RST for EOF; then even sending nothing fails. */
function earlyEnd(connection: Socket, received: number, length: number, server: string): Promise<Error> {
  const closed = new Error(`server closed after ${received} of ${length} bytes`);
  return new Promise((resolve) => {
    if (connection.writableLength > 0) return resolve(closed); // it does not even read what we send
    connection.write('', (error) => resolve(error ? failure(server, error) : closed));
  });
}

/** shutdown(), which sends our FIN; then waits for the server's. Silence or an RST will do too; more bytes won't. */
async function close(connection: Socket, length: number, server: string): Promise<void> {
  connection.end(); // shutdown()
  const more = await recv(connection.iterator(), server).catch(() => Buffer.alloc(0));
  if (more.length === 0) return;
  printReply(more);
  throw excess(length);
}

/** settimeout(): waits for a step, and throws if it takes longer than TIMEOUT. */
function inTime<T>(step: Promise<T>, server: string): Promise<T> {
  return new Promise((resolve, reject) => {
    const silence = new Error(`nothing came from ${server} for ${TIMEOUT} s`);
    // After a suspension (Ctrl-Z) the timer comes first, even if bytes have arrived: let Node look at the socket.
    const timer = setTimeout(() => setImmediate(reject, silence), TIMEOUT * 1000);
    step.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

/** A fault of the connection, with the code of the system call, in words. */
function failure(server: string, { code }: NodeJS.ErrnoException): Error {
  return new Error(`connection to ${server} failed (${code})`);
}

/** The fault of a server that is no echo server, in words. */
function excess(length: number): Error {
  return new Error(`server sent more than the ${length} bytes of the message`);
}

/** Prints the bytes as UTF-8, with control characters escaped. */
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

/** Does what the arguments ask for: to talk, to show the help, or to say what is wrong with them. */
function run(args: string[]): void {
  const [host = HOST, port = String(PORT), message = MESSAGE, unexpected] = args;
  const option = args.find((arg, index) => arg.startsWith('-') && index !== 2); // a message may start with a dash
  if (option === '-h' || option === '--help') console.log(HELP);
  else if (option !== undefined) report(`unknown option "${option}"`, 2);
  else if (unexpected !== undefined) report(`unexpected argument "${unexpected}"`, 2);
  else if (host === '') report('host "" is neither a name nor an address', 2);
  else if (!/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65535)
    report(`port "${port}" is not a whole number from 1 to 65535`, 2);
  else talk(host, Number(port), Buffer.from(message)).catch(fail);
}

/** Reports the first failure of stdout, and goes on. EPIPE is not one: the reader has left, as head(1) does. */
function watchStdout(): void {
  process.stdout.on('error', () => {}); // without a listener it would end Node
  process.stdout.once('error', ({ code }: NodeJS.ErrnoException) => {
    if (code !== 'EPIPE') report(`cannot print (${code})`, 1);
  });
}

/** Reports a failure on stderr, and sets the exit status: 1 at run time, 2 for a usage error. */
function report(message: string, status: 1 | 2): void {
  console.error(`client.ts: ${message}`);
  if (status === 2) console.error(USAGE);
  process.exitCode = status;
}

/** Reports an exception, expected or not, and ends the process when stdout has taken what was printed before. */
function fail({ message }: Error): void {
  report(message, 1);
  process.stdout.write('', () => process.exit());
}

process.on('uncaughtException', fail); // what nobody else caught
watchStdout();
run(process.argv.slice(2));
